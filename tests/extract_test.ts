import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { deltaNorm } from "../src/adapter/compare.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { singularVectors } from "../src/adapter/svd.ts";
import { extractAdapter } from "../src/checkpoint/extract.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder } from "../src/formats/source.ts";
import { folder } from "../src/fs/mod.ts";
import { fixtureFolder, readTensors } from "./adapter_fixtures.ts";
import { FIXTURES, lora } from "./cli_support.ts";
import { deltaError, store } from "./dialects_support.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";
import { random } from "./values.ts";

async function merged(base: string, adapter: string, dtype?: "bf16"): Promise<Folder> {
  const sink = memorySink();
  const loaded = await loadAdapter(fixtureFolder(`${adapter}/adapter`));
  await mergeCheckpoint(fixtureFolder(base), [{ adapter: loaded }], sink, dtype ? { dtype } : {});
  return memoryFolder(sink.files, "tuned");
}

test("extractAdapter() finds the adapter again that a checkpoint was merged with", async () => {
  for (const name of ["llama-plain", "llama-rslora", "llama-all-linear", "llama-patterns"]) {
    const wanted = await loadAdapter(fixtureFolder(`${name}/adapter`));
    const rank = Math.max(...Array.from(wanted.modules.values(), (module) => module.rank));
    const extracted = await extractAdapter(fixtureFolder("base/llama"), await merged("base/llama", name), { rank });
    // The merged weights are float32, so what they differ by is known to 1e-7 of their size.
    assert.ok(deltaError(extracted, wanted) < 1e-5, `${name}: ${deltaError(extracted, wanted)}`);
    for (const { error = 1 } of extracted.report) assert.ok(error < 1e-5, `${name}: ${error}`);
    const byEnergy = await extractAdapter(fixtureFolder("base/llama"), await merged("base/llama", name), {
      energy: 0.999999,
    });
    for (const [path, module] of wanted.modules) assert.ok(byEnergy.modules.get(path)!.rank <= module.rank, path);
    assert.ok(deltaError(byEnergy, wanted) < 2e-3, name);
  }
});

test("extractAdapter() gives the truncated decomposition's optimum and reports it, for factors of every kind of layer", async () => {
  const next = random(7);
  const shapes = {
    ...{ "a.weight": [37, 83], "b.weight": [64, 20], "model.embed_tokens.weight": [41, 12] },
    ...{ "conv.weight": [8, 3, 3, 3], "norm.weight": [9], "same.weight": [4, 4] },
  };
  const before = new Map(
    Object.entries(shapes).map(([name, shape]) => [name, { ...store("F32", 1, size(shape), next), shape }]),
  );
  const after = new Map([...before].map(([name, tensor]) => {
    const values = toFloat32(tensor).map((value) => value + (name === "same.weight" ? 0 : 0.1 * next()));
    return [name, { ...tensor, bytes: new Uint8Array(values.buffer) }];
  }));
  const asFolder = (tensors: typeof before) =>
    memoryFolder(new Map([["model.safetensors", encodeSafetensors(tensors)]]));
  for (const rank of [1, 4]) {
    const adapter = await extractAdapter(asFolder(before), asFolder(after), { rank });
    assert.deepEqual(
      Array.from(adapter.modules.values(), ({ name, kind }) => [name, kind]).sort(),
      [["a", "linear"], ["b", "linear"], ["conv", "conv"], ["model.embed_tokens", "embedding"]],
    );
    for (const { name, inFeatures: columns, ...module } of adapter.modules.values()) {
      const weight = `${name}.weight`;
      const [old, now] = [before, after].map((tensors) => toFloat32(tensors.get(weight)!));
      const [rows = 1] = before.get(weight)!.shape;
      const values = Float64Array.from(now!, (value, i) => value - old![i]!);
      const { sigma } = singularVectors({ rows, columns: values.length / rows, values });
      const energy = (part: Float64Array) => part.reduce((sum, value) => sum + value ** 2, 0);
      const optimum = Math.sqrt(energy(sigma.slice(rank)) / energy(sigma));
      const { error = 0 } = adapter.report.find((line) => line.module === name)!;
      assert.ok(Math.abs(error - optimum) < 1e-6, `${name} to ${rank}: ${error}, optimum ${optimum}`);
      const got = deltaNorm({ ...module, name, inFeatures: columns });
      assert.ok(Math.abs(got - Math.sqrt(energy(sigma.slice(0, rank)))) < 1e-5 * got, name);
    }
    assert.deepEqual([...adapter.replacements], [["norm.weight", after.get("norm.weight")]]);
  }
});

test("extractAdapter() comes close to the optimum of a matrix far larger than its sketch, also by energy", async () => {
  const [rows, columns] = [240, 200];
  const shape = [rows, columns];
  const next = random(11);
  // Singular values that fall slowly: the hardest case of a random sketch.
  const noise = Float32Array.from({ length: rows * columns }, (_, i) => next() / Math.sqrt(1 + i % columns));
  const tensor = (values: Float32Array): StoredTensor => ({
    dtype: "F32",
    shape,
    bytes: new Uint8Array(values.buffer),
  });
  const asFolder = (values: Float32Array) =>
    memoryFolder(new Map([["model.safetensors", encodeSafetensors(new Map([["a.weight", tensor(values)]]))]]));
  const { sigma } = singularVectors({ rows, columns, values: Float64Array.from(noise) });
  const energy = (values: Float64Array) => values.reduce((sum, value) => sum + value ** 2, 0);
  const [base, tuned] = [asFolder(new Float32Array(noise.length)), asFolder(noise)];
  const optimum = Math.sqrt(energy(sigma.slice(8)) / energy(sigma));
  const { report } = await extractAdapter(base, tuned, { rank: 8 });
  const { error = 0 } = report.find(({ module }) => module === "a")!;
  assert.ok(error >= optimum - 1e-6 && error < optimum * (1 + 2e-5), `${error}, optimum ${optimum}`);
  const least = sigma.findIndex((_, i) => energy(sigma.slice(0, i + 1)) >= 0.9 * energy(sigma)) + 1;
  const found = (await extractAdapter(base, tuned, { energy: 0.9 })).modules.get("a")!;
  assert.ok(least > 64 && found.rank >= least && found.rank <= least + 1, `${found.rank}, at least ${least}`);
});

function size(shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, 1);
}

test("extractAdapter() writes GPT-2's transposed layers as PEFT has them", async () => {
  const wanted = await loadAdapter(fixtureFolder("gpt2-plain/adapter"));
  const { r } = wanted.config;
  const extracted = await extractAdapter(fixtureFolder("base/gpt2"), await merged("base/gpt2", "gpt2-plain"), {
    rank: r,
  });
  assert.ok(deltaError(extracted, wanted) < 1e-5);
  assert.equal(extracted.config.fanInFanOut, true);
});

test("extractAdapter() is the same for the same seed, and keeps the types asked for", async () => {
  const tuned = await merged("base/llama", "llama-plain", "bf16");
  const extract = (seed: number) =>
    extractAdapter(fixtureFolder("base/llama"), tuned, { rank: 3, seed, dtype: "BF16" });
  const [one, again, other] = [await extract(1), await extract(1), await extract(2)];
  assert.equal(one.sha256, again.sha256);
  assert.ok(deltaError(other, one) < 0.05);
  for (const { dtype } of one.modules.values()) assert.equal(dtype, "BF16");
});

test("extractAdapter() refuses checkpoints that are not two of one model, and sizes that are none", async () => {
  const base = fixtureFolder("base/llama");
  const refused = (tuned: Folder, options: object) => extractAdapter(base, tuned, { rank: 2, ...options });
  await assert.rejects(refused(base, {}), { name: "MismatchError" });
  await assert.rejects(refused(fixtureFolder("base/qwen3"), {}), { name: "MismatchError" });
  const tensors = await readTensors(await loadFile(base));
  const name = "model.norm.weight";
  const bad = (change: object) =>
    memoryFolder(
      new Map([[
        "model.safetensors",
        encodeSafetensors(new Map([...tensors, [name, { ...tensors.get(name)!, ...change }]])),
      ]]),
    );
  const other = bad({ shape: [24], bytes: new Uint8Array(96) });
  await assert.rejects(refused(other, {}), { name: "MismatchError", tensor: name });
  const nan = bad({ bytes: new Uint8Array(new Float32Array(48).fill(NaN).buffer) });
  await assert.rejects(refused(nan, {}), { name: "NumericError", tensor: name });
  for (
    const options of [{ rank: 0 }, { rank: 1.5 }, { energy: 0 }, { energy: 2 }, { seed: 0.5 }, { rank: undefined }]
  ) {
    await assert.rejects(refused(base, options), RangeError);
  }
});

async function loadFile(source: Folder): Promise<Uint8Array> {
  const file = source.open("model.safetensors");
  return await file.read(0, await file.size());
}

test("lora extract writes an adapter that merges back to the tuned model, and tells its errors", async () => {
  await inTemporaryFolder(async (path) => {
    const base = join(FIXTURES, "base", "llama");
    const tuned = join(path, "tuned");
    const wanted = await loadAdapter(folder(join(FIXTURES, "llama-plain", "adapter")));
    await mergeCheckpoint(folder(base), [{ adapter: wanted }], folder(tuned));
    const out = join(path, "out");
    const { status, stdout, stderr } = await lora(...[
      "extract",
      "--base",
      base,
      "--tuned",
      tuned,
      "--out",
      out,
      "--rank",
      "8",
    ]);
    assert.equal(status, 0, stderr);
    assert.match(stdout, /q_proj/);
    assert.ok(deltaError(await loadAdapter(folder(out)), wanted) < 1e-5);
    const wrong = await lora("extract", "--base", base, "--tuned", tuned, "--out", out);
    assert.equal(wrong.status, 2);
  });
});
