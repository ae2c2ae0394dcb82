import assert from "node:assert/strict";
import { cpSync, existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { concat } from "../src/formats/concat.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { layoutSafetensors } from "../src/formats/safetensors_writer.ts";
import { file, folder } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/mod.ts";
import { loadTokenizer } from "../src/text/mod.ts";
import { readTensors } from "./adapter_fixtures.ts";
import { type Ended, FIXTURES, kill, lora, loraJson, startLora, TINY } from "./cli_support.ts";
import { GGUF, NEEDS_GGUF } from "./smollm2.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

/** The llama of the fixtures with a tensor of 256 MiB behind its own, as holes: time to stop a merge in its middle. */
async function writeLongBase(path: string): Promise<void> {
  cpSync(join(FIXTURES, "base", "llama"), path, { recursive: true });
  const tensors = await readTensors(new Uint8Array(readFileSync(join(path, "model.safetensors"))));
  const specs = Array.from(tensors, ([name, { dtype, shape }]) => ({ name, dtype, shape }));
  const { header, order } = layoutSafetensors([...specs, { name: "z", dtype: "F32", shape: [8192, 8192] }]);
  const parts = [header, ...order.map((name) => tensors.get(name)?.bytes ?? new Uint8Array())];
  const target = join(path, "model.safetensors");
  writeFileSync(target, concat(parts));
  truncateSync(target, readFileSync(target).length + 4 * 8192 * 8192);
}

/** Starts a long merge and ends it by a signal as soon as it writes. */
async function interruptMerge(path: string, signal: "SIGINT" | "SIGKILL"): Promise<Ended & { files: string[] }> {
  const [base, out] = [join(path, "base"), join(path, signal)];
  const adapter = join(FIXTURES, "llama-plain", "adapter");
  const { child, ended } = startLora("merge", "--base", base, "--adapter", adapter, "--out", out);
  const files = () => existsSync(out) ? readdirSync(out) : [];
  const deadline = Date.now() + 5000;
  const isWriting = () => files().some((name) => name.endsWith(".partial"));
  while (!isWriting() && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 1));
  kill(child, signal);
  return { ...await ended, files: files() };
}

test("lora merge sums weighted adapters into a folder that answers as they do unmerged", async () => {
  await inTemporaryFolder(async (path) => {
    const adapters = ["--adapter", join(TINY, "tweets"), "--adapter", `${join(TINY, "news")}=0.5`];
    const [base, out] = [join(TINY, "base"), join(path, "out")];
    const report = await loraJson("merge", "--base", base, ...adapters, "--out", out, "--dtype", "f32");
    assert.deepEqual([...report.files as string[]].sort(), readdirSync(out).sort());
    assert.equal((report.merged as string[]).length, 35);
    const prompt = ["--prompt", "<|end|>I am so", "--max-new-tokens", "12", "--dtype", "f32"];
    const merged = await loraJson("generate", "--model", out, ...prompt);
    const unmerged = await loraJson("generate", "--model", base, ...adapters, ...prompt);
    assert.deepEqual(merged.tokens, unmerged.tokens);
  });
});

test("lora merge takes every kind, and an adapter of a changed base only where the caller says that it is that base", async () => {
  await inTemporaryFolder(async (path) => {
    const merge = (base: string, adapter: string, out: string, ...more: string[]) =>
      lora("merge", "--base", join(FIXTURES, "base", base), "--adapter", adapter, "--out", join(path, out), ...more);
    const moe = await merge("mixtral", join(FIXTURES, "moe", "adapter"), "moe");
    assert.deepEqual([moe.status, /6 of 21 tensors/.test(moe.stdout)], [0, true], moe.stderr);
    const adapter = join(path, "corda");
    cpSync(join(FIXTURES, "llama-plain", "adapter"), adapter, { recursive: true });
    const config = join(adapter, "adapter_config.json");
    const text = readFileSync(config, "utf8").replace('"init_lora_weights": true', '"init_lora_weights": "corda"');
    writeFileSync(config, text);
    const refused = await merge("llama", adapter, "refused");
    assert.deepEqual([refused.status, existsSync(join(path, "refused"))], [1, false]);
    assert.match(refused.stderr, /^Cannot merge .*residualBase/m);
    for (
      const [from, out, ...more] of [[adapter, "a", "--residual-base"], [join(FIXTURES, "llama-plain", "adapter"), "b"]]
    ) {
      assert.equal((await merge("llama", from!, out!, ...more)).status, 0);
    }
    const [a, b] = ["a", "b"].map((out) => readFileSync(join(path, out, "model.safetensors")));
    assert.ok(a!.equals(b!));
  });
});

test("lora merge refuses its own base, and leaves nothing of an adapter with a NaN", async () => {
  await inTemporaryFolder(async (path) => {
    const [base, adapter, out] = [join(path, "base"), join(path, "adapter"), join(path, "out")];
    cpSync(join(FIXTURES, "base", "llama"), base, { recursive: true });
    cpSync(join(FIXTURES, "llama-plain", "adapter"), adapter, { recursive: true });
    const same = await lora("merge", "--base", base, "--adapter", adapter, "--out", join(base, "."));
    assert.equal(same.status, 2);
    const weights = join(adapter, "adapter_model.safetensors");
    const bytes = readFileSync(weights);
    bytes.writeFloatLE(NaN, bytes.length - 4);
    writeFileSync(weights, bytes);
    const { status, stderr } = await lora("merge", "--base", base, "--adapter", adapter, "--out", out);
    assert.equal(status, 1);
    assert.match(stderr, /^Cannot [^\n]*finite[^\n]*\n$/);
    assert.deepEqual(existsSync(out) ? readdirSync(out) : [], []);
  });
});

test("a merge stopped by Ctrl-C leaves nothing, a killed one nothing under a final name", async () => {
  await inTemporaryFolder(async (path) => {
    await writeLongBase(join(path, "base"));
    const stopped = await interruptMerge(path, "SIGINT");
    assert.deepEqual(stopped, { status: 130, stdout: "", stderr: "", files: [] });
    const { files } = await interruptMerge(path, "SIGKILL");
    assert.ok(files.some((name) => name.endsWith(".partial")), "the kill came after the merge");
    for (const name of files) assert.match(name, /\.partial$|^merge\.[0-9a-f.]+\.lock$/);
  });
});

test("lora merge writes a GGUF base as a Hugging Face folder with its tokenizer", NEEDS_GGUF, async () => {
  await inTemporaryFolder(async (path) => {
    const adapter = join(FIXTURES, "smollm2", "adapters", "emotion");
    const options = ["--base", GGUF, "--adapter", adapter, "--out", path, "--dtype", "bf16"];
    const { report } = await loraJson("merge", ...options);
    assert.deepEqual(report, []);
    const model = await loadModel(file(GGUF), { dtype: "bf16" });
    const tokenizer = await loadTokenizer(folder(path));
    const text = "Review: 12345 it's  fine\n\n\té漢字🤖 <|im_end|>";
    assert.deepEqual(tokenizer.encode(text), model.tokenizer!.encode(text));
    const chat = [{ role: "user", content: text }];
    assert.deepEqual(tokenizer.chat(chat), model.tokenizer!.chat(chat));
    assert.deepEqual(tokenizer.eosIds, model.tokenizer!.eosIds);
    model.dispose();
    const merged = await readTensors(new Uint8Array(readFileSync(join(path, "model.safetensors"))));
    assert.equal(merged.size, 272);
    const norm = merged.get("model.norm.weight")!;
    assert.deepEqual(norm.bytes, encodeBf16(toFloat32(norm)));
  });
});
