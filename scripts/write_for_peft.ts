/**
 * Writes adapters of every kind as this package writes them, for scripts/check_with_peft.py: deno run -A
 * scripts/write_for_peft.ts FOLDER. Each case is a folder with `case.json` (the base), `adapter` (what PEFT is to load)
 * and `merged` (the base with the adapter merged by this package, which PEFT's own result is compared with).
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { Adapter } from "../src/adapter/adapter.ts";
import { combineAdapters, resizeAdapter } from "../src/adapter/combine.ts";
import { type BaseModule, createAdapter, type CreateAdapterOptions } from "../src/adapter/create.ts";
import { readBaseFacts } from "../src/adapter/dialects/base_facts.ts";
import { DIALECTS, readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { Dialect } from "../src/adapter/dialects/options.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { toPlainLora } from "../src/adapter/to_plain.ts";
import { extractAdapter } from "../src/checkpoint/extract.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { folder } from "../src/fs/mod.ts";
import { foreign } from "../tests/dialects_support.ts";

interface Case {
  readonly name: string;
  readonly base: string;
  readonly adapter: Adapter;
}

const FIXTURES = fileURLToPath(new URL("../tests/fixtures/", import.meta.url));
const LLAMA = "base/llama";

const [out] = process.argv.slice(2);
if (out === undefined) throw new Error("Cannot write adapters without a folder: expected its path");
const kinds = [fixtureCases, madeCases, initialisedCases, createdKindCases, extractedCases, convertedCases];
for (const cases of kinds) for (const one of await cases()) await write(out, one);

async function load(path: string): Promise<Adapter> {
  return await loadAdapter(folder(join(FIXTURES, path)), { allowPickle: true });
}

/** What PEFT has saved, saved by us. */
async function fixtureCases(): Promise<Case[]> {
  const index: { case: string; base: string }[] = JSON.parse(readFileSync(join(FIXTURES, "index.json"), "utf8"));
  return await Promise.all(
    index.map(async ({ case: name, base }) => ({ name, base, adapter: await load(`${name}/adapter`) })),
  );
}

/** What we make of adapters. */
async function madeCases(): Promise<Case[]> {
  const [plain, rslora] = [await load("llama-plain/adapter"), await load("llama-rslora/adapter")];
  const several = [{ adapter: plain, weight: 0.7 }, { adapter: rslora, weight: -0.4 }];
  const made: Record<string, Adapter> = {
    "combined-cat": await combineAdapters(several),
    "combined-svd-bf16": await combineAdapters(several, { method: "svd", rank: 5, dtype: "BF16" }),
    "combined-energy": await combineAdapters(several, { method: "svd", energy: 0.9 }),
    "resized": await resizeAdapter(plain, { rank: 3 }),
    "created": await createAdapter({
      ...{ targetModules: ["q_proj", "v_proj"], r: 4, loraAlpha: 6, useRslora: true, taskType: "CAUSAL_LM" },
      ...{ rankPattern: { v_proj: 2 }, alphaPattern: { "layers\\.1\\..*": 3 }, modules: rslora.modules.values() },
    }),
  };
  return Object.entries(made).map(([name, adapter]) => ({ name, base: LLAMA, adapter }));
}

/** Adapters that begin from the base's weights, after a step that changes them; PEFT takes the same from the base again. */
async function initialisedCases(): Promise<Case[]> {
  const base = await openCheckpoint(folder(join(FIXTURES, LLAMA)));
  const { modules } = await load("llama-rslora/adapter");
  const weightOf = (name: string) => base.read(`${name}.weight`);
  const sides = { targetModules: ["q_proj", "v_proj"], r: 4, loraAlpha: 6, taskType: "CAUSAL_LM", weightOf };
  const cases: Case[] = [];
  for (const init of ["pissa", "olora", "mica", "orthogonal"] as const) {
    const adapter = step(await createAdapter({ ...sides, modules: modules.values(), init }));
    cases.push({ name: `created-${init}`, base: LLAMA, adapter });
    if (adapter.baseChange) {
      cases.push({ name: `plain-${init}`, base: LLAMA, adapter: await toPlainLora(adapter, { weightOf }) });
    }
  }
  const dora = step(await createAdapter({ ...sides, modules: modules.values(), useDora: true }));
  return [...cases, { name: "created-dora", base: LLAMA, adapter: dora }];
}

/** The adapter after a step that changes all its factors. */
function step(adapter: Adapter): Adapter {
  const more = (tensor: StoredTensor, seed: number): StoredTensor => {
    const values = toFloat32(tensor).map((value, i) => value + 0.1 * Math.sin(seed * (i + 1)));
    return { ...tensor, bytes: new Uint8Array(values.buffer) };
  };
  const moved = [...adapter.modules].map(([name, module]) => {
    const { loraA, loraB, loraBias } = module;
    const factors = { loraA: more(loraA, 1.7), loraB: more(loraB, 2.3) };
    return [name, { ...module, ...factors, ...(loraBias && { loraBias: more(loraBias, 0.9) }) }] as const;
  });
  return new Adapter({ ...adapter, modules: new Map(moved) });
}

/** Embeddings, convolutions and experts that begin here, after a step. */
async function createdKindCases(): Promise<Case[]> {
  const kernels = { conv1: [5, 6, 3], conv2: [4, 6, 3, 5], point: [4, 7, 1, 1], conv3: [3, 6, 3, 3, 3] };
  const conv = Object.entries(kernels).map(([name, [inFeatures = 0, outFeatures = 0, ...kernel]]): BaseModule => {
    return { name, kind: "conv", inFeatures, outFeatures, kernel };
  });
  const [table, experts] = [await load("llama-embedding/adapter"), await load("moe/adapter")];
  const targetModules = Object.keys(kernels);
  const biased = { modules: conv.slice(0, 3), targetModules: targetModules.slice(0, 3), loraBias: true };
  const words = {
    modules: [...table.modules.values()],
    targetModules: ["embed_tokens", "q_proj"],
    taskType: "CAUSAL_LM",
  };
  const fused = { modules: [...experts.modules.values()], taskType: "CAUSAL_LM" };
  const targetParameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];
  const asked: [name: string, base: string, options: CreateAdapterOptions][] = [
    ["conv", "base/conv", { modules: conv, targetModules }],
    ["conv-gaussian-rslora", "base/conv", { modules: conv, targetModules, init: "gaussian", useRslora: true }],
    ["conv-dora", "base/conv", { modules: conv, targetModules, useDora: true }],
    ["conv-bias", "base/conv", biased],
    ["embedding", LLAMA, words],
    ["embedding-mica", LLAMA, { ...words, init: "mica" }],
    ["embedding-dora", LLAMA, { ...words, useDora: true }],
    ["experts", "base/mixtral", { ...fused, targetParameters }],
    ["experts-one", "base/mixtral", { ...fused, targetModules: ["q_proj"], targetParameters: [targetParameters[1]!] }],
  ];
  return await Promise.all(asked.map(async ([name, base, options]) => {
    const checkpoint = await openCheckpoint(folder(join(FIXTURES, base)));
    const weightOf = (module: string) => checkpoint.read(`${module}.weight`);
    const adapter = step(await createAdapter({ r: 4, loraAlpha: 6, weightOf, ...options }));
    return { name: `created-${name}`, base, adapter };
  }));
}

/** What is extracted of checkpoints whose norms, biases and embeddings differ too. */
async function extractedCases(): Promise<Case[]> {
  const bert = "encoder.layer.0.attention.self.query";
  const [weight, bias] = [`${bert}.weight`, `${bert}.bias`];
  const norm = "encoder.layer.1.output.LayerNorm";
  const all = [weight, "encoder.layer.1.output.dense.bias", `${norm}.weight`, `${norm}.bias`];
  const changes: [name: string, base: string, tensors: readonly string[]][] = [
    ["norms", LLAMA, ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]],
    ["biases", "base/bert", [weight, bias]],
    ["all-biases", "base/bert", all],
  ];
  return await Promise.all(changes.map(async ([name, base, changed]) => {
    const from = folder(join(FIXTURES, base));
    const checkpoint = await openCheckpoint(from);
    const tensors = new Map<string, StoredTensor>();
    for (const tensor of checkpoint.tensors.keys()) {
      const stored = await checkpoint.read(tensor);
      const isTable = tensor.endsWith("embed_tokens.weight");
      // Of a table the first rows alone.
      const size = isTable ? 5 * stored.shape[1]! : changed.includes(tensor) ? Infinity : 0;
      const values = toFloat32(stored).map((value, i) => value + (i < size ? 0.1 * Math.sin(1.3 * i) : 0));
      tensors.set(tensor, { ...stored, bytes: new Uint8Array(values.buffer) });
    }
    const config = await from.open("config.json").read(0, await from.open("config.json").size());
    const files = new Map([["model.safetensors", encodeSafetensors(tensors)], ["config.json", config]]);
    return { name: `extracted-${name}`, base, adapter: await extractAdapter(from, memoryFolder(files), { rank: 4 }) };
  }));
}

/** What comes back from other dialects, with what the files carry for that and, marked "alone", without. */
async function convertedCases(): Promise<Case[]> {
  const cases: Case[] = [];
  const others = DIALECTS.filter((dialect) => dialect !== "peft");
  const tables = ["gguf", "mlx", "loralib"] as const;
  const converted: readonly (readonly [name: string, base: string, dialects: readonly Dialect[]])[] = [
    ["llama-patterns", LLAMA, others],
    ["llama-dora-rslora", LLAMA, others],
    ["llama-bf16", LLAMA, others],
    ["llama-embedding", LLAMA, tables],
    ["moe", "base/mixtral", ["mlx"]],
  ];
  for (const [name, base, dialects] of converted) {
    const adapter = await load(`${name}/adapter`);
    const facts = await readBaseFacts(folder(join(FIXTURES, base)));
    for (const to of dialects) {
      const sink = memorySink();
      await writeAdapter(adapter, to, sink, { ...facts, allowLoss: true });
      const read = await readAdapter(memoryFolder(sink.files));
      cases.push({ name: `${name}-from-${to}`, base, adapter: read.adapter });
      if (!tables.some((table) => table === to)) continue;
      const alone = await readAdapter(await foreign(sink.files), { alpha: adapter.config.loraAlpha });
      cases.push({ name: `${name}-from-${to}-alone`, base, adapter: alone.adapter });
    }
  }
  return cases;
}

async function write(root: string, { name, base, adapter }: Case): Promise<void> {
  const path = join(root, name);
  mkdirSync(path, { recursive: true });
  await saveAdapter(adapter, folder(join(path, "adapter")));
  await mergeCheckpoint(folder(join(FIXTURES, base)), [{ adapter }], folder(join(path, "merged")));
  writeFileSync(join(path, "case.json"), JSON.stringify({ base: join(FIXTURES, base) }));
}
