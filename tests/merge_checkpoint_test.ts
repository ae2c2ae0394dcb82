import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { createAdapter } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import type { Backend } from "../src/backend.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { encodeF16 } from "../src/formats/float16.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { openBackend } from "../src/open.ts";
import { forEachBackend } from "./backends.ts";
import {
  expectedTensors,
  filled,
  fixture,
  fixtureFiles,
  fixtureFolder,
  INDEX,
  merged,
  MODEL,
  readTensors,
  relativeError,
  sharded,
  smallAdapter,
  smallBase,
} from "./adapter_fixtures.ts";

const CASES = [
  ["llama-plain", "llama"],
  ["llama-rslora", "llama"],
  ["llama-all-linear", "llama"],
  ["llama-patterns", "llama"],
  ["llama-layers-to-transform", "llama"],
  ["llama-exclude", "llama"],
  ["llama-bf16", "llama"],
  ["llama-f16", "llama"],
  ["qwen3-plain", "qwen3"],
  ["gpt2-plain", "gpt2"],
  ["bert-plain", "bert"],
] as const;

const small = (change: Parameters<typeof smallAdapter>[0] = {}) => loadAdapter(smallAdapter(change));

forEachBackend("mergeCheckpoint() writes what PEFT's merge gives, and all else bit for bit", async (backend) => {
  for (const [name, base] of CASES) {
    const original = await readTensors(fixture(`base/${base}/${MODEL}`));
    const want = await expectedTensors(name, "merged.");
    const adapter = await loadAdapter(fixtureFolder(`${name}/adapter`));
    const sink = memorySink();
    const report = await mergeCheckpoint(fixtureFolder(`base/${base}`), [{ adapter }], sink, { backend });
    assert.deepEqual([...report.merged].sort(), [...want.keys()].sort(), name);
    assert.deepEqual([report.tensors, report.report], [original.size, []]);
    const got = await readTensors(sink.files.get(MODEL)!);
    assert.deepEqual([...got.keys()], [...original.keys()], name);
    for (const [tensor, stored] of got) {
      const expected = want.get(tensor);
      if (!expected) assert.deepEqual(stored, original.get(tensor), `${name}: ${tensor}`);
      else {
        assert.deepEqual(stored.shape, expected.shape);
        const error = relativeError(toFloat32(stored), expected.values);
        assert.ok(error <= 1e-6, `${name}: ${tensor} differs by ${error}`);
      }
    }
    const copied = [...fixtureFiles(`base/${base}`)].filter(([file]) => file !== MODEL);
    for (const [file, bytes] of copied) assert.deepEqual(sink.files.get(file), bytes, `${name}: ${file}`);
    assert.equal(report.bytes, [...sink.files.values()].reduce((sum, { length }) => sum + length, 0));
  }
});

forEachBackend("mergeCheckpoint() adds several adapters with their weights, exactly summed", async (backend) => {
  const want = await expectedTensors("multi", "weighted.");
  const weights = { emotion: 0.7, summary: -0.4, qa: 1.3 };
  const adapters = await Promise.all(
    Object.entries(weights).map(async ([name, weight]) => ({
      adapter: await loadAdapter(fixtureFolder(`multi/${name}`)),
      weight,
    })),
  );
  const sink = memorySink();
  await mergeCheckpoint(fixtureFolder("base/llama"), adapters, sink, { backend });
  const got = await readTensors(sink.files.get(MODEL)!);
  for (const [tensor, { values }] of want) {
    const error = relativeError(toFloat32(got.get(tensor)!), values);
    assert.ok(error <= 1e-6, `${tensor} differs by ${error}`);
  }
});

test("a merge in bf16 or f16 is the exact merge rounded once, and says so in config.json", async () => {
  const want = await expectedTensors("llama-plain", "merged.");
  const original = await readTensors(fixture(`base/llama/${MODEL}`));
  const adapter = await loadAdapter(fixtureFolder("llama-plain/adapter"));
  for (
    const [dtype, name, torch, encode] of [["bf16", "BF16", "bfloat16", encodeBf16], [
      "f16",
      "F16",
      "float16",
      encodeF16,
    ]] as const
  ) {
    const sink = memorySink();
    await mergeCheckpoint(fixtureFolder("base/llama"), [{ adapter }], sink, { dtype });
    for (const [tensor, stored] of await readTensors(sink.files.get(MODEL)!)) {
      const exact = Float32Array.from(want.get(tensor)?.values ?? toFloat32(original.get(tensor)!));
      assert.equal(stored.dtype, name);
      const rounded = new Uint16Array(encode(exact).buffer);
      const got = new Uint16Array(stored.bytes.buffer);
      // A value next to the middle between two numbers may fall to either side of it in 32 bits.
      const differing = got.filter((bits, i) => bits !== rounded[i]).length;
      assert.ok(differing <= (want.has(tensor) ? 2 : 0), `${tensor}: ${differing} of ${got.length} differ`);
    }
    const config = new TextDecoder().decode(fixture("base/llama/config.json"));
    const saved = new TextDecoder().decode(sink.files.get("config.json"));
    assert.equal(saved, config.replace('"dtype": "float32"', `"dtype": "${torch}"`));
  }
});

test("mergeCheckpoint() keeps the dtype of each tensor unless another one is asked for", async () => {
  const half = { dtype: "F16", shape: [6, 4], bytes: encodeF16(new Float32Array(24).fill(1)) } as const;
  const ids = { dtype: "I64", shape: [2], bytes: new Uint8Array(16).fill(7) } as const;
  const base = smallBase({ "layers.0.q_proj.weight": half, ids, norm: filled([3], 0.1) });
  const kept = await merged(base, await small());
  // W = 1, s = 2, B A = 2 · 0.25.
  assert.deepEqual(kept.get("layers.0.q_proj.weight"), { ...half, bytes: encodeF16(new Float32Array(24).fill(2)) });
  assert.deepEqual([kept.get("norm"), kept.get("ids")], [filled([3], 0.1), ids]);
  const wide = await merged(base, await small(), { dtype: "f32" });
  assert.deepEqual(wide.get("layers.0.q_proj.weight"), filled([6, 4], 2));
  assert.deepEqual(wide.get("ids"), ids);
});

test("mergeCheckpoint() turns the delta where the weight is stored (in, out), square ones included", async () => {
  const modules = [
    { name: "h.c_attn", inFeatures: 4, outFeatures: 6 },
    { name: "h.c_proj", inFeatures: 4, outFeatures: 4 },
  ];
  const adapter = await randomised(await createAdapter({ modules, targetModules: ["c_attn", "c_proj"], r: 2 }));
  const both = new Map([["h.c_attn.weight", filled([4, 6], 0)], ["h.c_proj.weight", filled([4, 4], 0)]]);
  const got = await merged(new Map([[MODEL, encodeSafetensors(both)]]), adapter);
  for (const [name, module] of adapter.modules) {
    assert.ok(relativeError(toFloat32(got.get(`${name}.weight`)!), delta(module, true)) < 1e-6, name);
  }
  const square = new Map([...adapter.modules].slice(1));
  for (const fanInFanOut of [true, false]) {
    const alone = Object.assign(Object.create(adapter), {
      modules: square,
      config: { ...adapter.config, fanInFanOut, targetModules: ["c_proj"] },
    });
    const stored = await merged(new Map([[MODEL, encodeSafetensors(both)]]), alone);
    const want = delta(adapter.modules.get("h.c_proj")!, fanInFanOut);
    assert.ok(relativeError(toFloat32(stored.get("h.c_proj.weight")!), want) < 1e-6, `fanInFanOut ${fanInFanOut}`);
  }
});

test("of a square weight, others of its name or its block beside a bias tell that it is stored (in, out)", async () => {
  const modules = [
    { name: "h.attn.c_proj", inFeatures: 4, outFeatures: 4 },
    { name: "lm_head", inFeatures: 4, outFeatures: 9 },
  ];
  // Not square and not turned, as PEFT's config has it after the last layer.
  const adapter = await randomised(await createAdapter({ modules, targetModules: ["attn.c_proj", "lm_head"], r: 2 }));
  const plain = { "lm_head.weight": filled([9, 4], 0), "h.attn.c_proj.weight": filled([4, 4], 0), norm: filled([4]) };
  const witnesses: Readonly<Record<string, StoredTensor>>[] = [
    { "h.mlp.c_proj.weight": filled([8, 4]), "h.mlp.c_proj.bias": filled([4]) },
    { "h.attn.c_attn.weight": filled([4, 12]), "h.attn.c_attn.bias": filled([12]) },
    { "h.attn.k_norm.weight": filled([4]), "h.mlp.c_proj.weight": filled([4, 8]), "h.mlp.c_proj.bias": filled([4]) },
    {},
  ];
  for (const [i, witness] of witnesses.entries()) {
    const base = encodeSafetensors(new Map(Object.entries({ ...plain, ...witness })));
    const got = await merged(new Map([[MODEL, base]]), adapter);
    for (const [name, module] of adapter.modules) {
      const want = delta(module, i < 2 && name !== "lm_head");
      assert.ok(relativeError(toFloat32(got.get(`${name}.weight`)!), want) < 1e-6, `${i} ${name}`);
    }
  }
});

/** The same adapter with other values in B than zero. */
function randomised(adapter: Adapter): Adapter {
  const modules = [...adapter.modules].map(([name, module], n) => {
    const [out, rank] = module.loraB.shape as [number, number];
    const values = Float32Array.from({ length: out * rank }, (_, i) => Math.sin(17 * i + n));
    return [name, { ...module, loraB: { ...module.loraB, bytes: new Uint8Array(values.buffer) } }] as const;
  });
  return Object.assign(Object.create(adapter), { modules: new Map(modules) });
}

/** s B A in float64, or its transpose. */
function delta(
  { loraA, loraB, rank, inFeatures, outFeatures, scaling }: Adapter["modules"] extends ReadonlyMap<string, infer M> ? M
    : never,
  transposed: boolean,
): Float64Array {
  const [a, b] = [toFloat32(loraA), toFloat32(loraB)];
  const values = new Float64Array(inFeatures * outFeatures);
  for (let o = 0; o < outFeatures; o++) {
    for (let i = 0; i < inFeatures; i++) {
      const at = transposed ? i * outFeatures + o : o * inFeatures + i;
      for (let k = 0; k < rank; k++) values[at]! += scaling * b[o * rank + k]! * a[k * inFeatures + i]!;
    }
  }
  return values;
}

test("a weight larger than one piece is merged row by row, both ways round", async () => {
  const [rows, columns] = [1030, 4099];
  for (const transposed of [false, true]) {
    const modules = [{
      name: "big",
      inFeatures: transposed ? rows : columns,
      outFeatures: transposed ? columns : rows,
    }];
    const adapter = randomised(await createAdapter({ modules, targetModules: ["big"], r: 1 }));
    const base = new Map([["big.weight", filled([rows, columns], 0)], ["copy", filled([2 ** 22 + 1], 3)]]);
    const progress: number[] = [];
    const onProgress = ({ loaded, total }: { loaded: number; total: number }) => progress.push(loaded / total);
    const got = await merged(new Map([[MODEL, encodeSafetensors(base)]]), adapter, { onProgress });
    assert.ok(relativeError(toFloat32(got.get("big.weight")!), delta(adapter.modules.get("big")!, transposed)) < 1e-6);
    assert.deepEqual(got.get("copy"), base.get("copy"));
    assert.ok(progress.length >= 7 && progress.at(-1) === 1, `progress ${progress}`);
    assert.deepEqual(progress, progress.toSorted((a, b) => a - b));
  }
});

test("a sharded checkpoint keeps its shards and its index", async () => {
  const files = sharded();
  const sink = memorySink();
  const report = await mergeCheckpoint(memoryFolder(files), [{ adapter: await small() }], sink);
  const names = [...files.keys()].filter((name) => name !== "training_args.bin");
  assert.deepEqual([...sink.files.keys()].sort(), names.sort());
  assert.deepEqual(report.files.at(-1), "config.json");
  for (const name of names) {
    if (!name.startsWith("model-00002")) assert.deepEqual(sink.files.get(name), files.get(name), name);
  }
  const second = await readTensors(sink.files.get("model-00002-of-00002.safetensors")!);
  assert.deepEqual([...second], [["layers.0.q_proj.weight", filled([6, 4], 2)]]);
});

test("in another dtype the index has the new size and the config the new dtype", async () => {
  const sink = memorySink();
  await mergeCheckpoint(memoryFolder(sharded()), [{ adapter: await small() }], sink, { dtype: "bf16" });
  const read = (name: string) => new TextDecoder().decode(sink.files.get(name));
  assert.deepEqual(JSON.parse(read(INDEX)).metadata, { total_parameters: 27, total_size: 54 });
  assert.deepEqual(JSON.parse(read("config.json")), {
    torch_dtype: "bfloat16",
    text_config: { dtype: "bfloat16" },
    name: "float32",
  });
});
test("a checkpoint may leave out the model's name before its paths, or have one more, and it is reported", async () => {
  const adapter = await loadAdapter(fixtureFolder("gpt2-plain/adapter"));
  const original = await readTensors(fixture(`base/gpt2/${MODEL}`));
  const want = await expectedTensors("gpt2-plain", "merged.");
  for (const rename of [(n: string) => n.replace("transformer.", ""), (n: string) => `wrapper.${n}`]) {
    const file = encodeSafetensors(new Map([...original].map(([name, tensor]) => [rename(name), tensor])));
    const sink = memorySink();
    const { report } = await mergeCheckpoint(memoryFolder(new Map([[MODEL, file]])), [{ adapter }], sink);
    assert.equal(report.length, 1);
    const got = await readTensors(sink.files.get(MODEL)!);
    for (const [name, { values }] of want) {
      assert.ok(relativeError(toFloat32(got.get(rename(name))!), values) <= 1e-6, rename(name));
    }
  }
});

test("a backend that is passed stays open and keeps no memory; without adapters a merge is a copy", async () => {
  const backend: Backend = await openBackend({ prefer: "wasm" });
  try {
    const before = backend.bytes;
    await merged(smallBase(), await small(), { backend });
    assert.equal(backend.bytes, before);
    assert.deepEqual([...await merged(smallBase(), [], { backend })], [["layers.0.q_proj.weight", filled([6, 4], 1)]]);
    await assert.rejects(merged(smallBase(), await small(), { backend, dtype: "int4" as never }), TypeError);
  } finally {
    backend.dispose();
  }
});
