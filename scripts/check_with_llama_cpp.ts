/**
 * llama.cpp runs what this package writes: node scripts/check_with_llama_cpp.ts (22.18 up; once before, a `deno task`
 * that installs the dependencies). It installs node-llama-cpp, whose native code that is, by scripts/setup_peers.sh.
 *
 * The bases of the fixtures and SmolLM2-135M are run in f32 with every adapter that GGUF can hold, as an adapter beside
 * the base and merged into it. Logits are compared with PEFT's own, and SmolLM2's greedy tokens with transformers'.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { modelIn } from "../bench/model_files.ts";
import type { Adapter } from "../src/adapter/adapter.ts";
import { readBaseFacts } from "../src/adapter/dialects/base_facts.ts";
import { writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { WriteDialectOptions } from "../src/adapter/dialects/options.ts";
import { createAdapter } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { mergeGguf } from "../src/checkpoint/merge_gguf.ts";
import { MismatchError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { file, folder } from "../src/fs/mod.ts";
import { ggufFolder } from "../src/models/gguf_folder.ts";
import { loadModel } from "../src/models/load.ts";
import { convert, HEADS, LLAMA, metadata, QWEN3 } from "../tests/gguf_models.ts";
import { ggufSource } from "../tests/gguf_writer.ts";
import { readCheckpoint } from "../tests/models_support.ts";
import { FIXTURES, type InteropCase, readCases, requireNear, type Rows, Tally } from "./interop_cases.ts";

interface Sequence {
  clearHistory(): Promise<void>;
  controlledEvaluate(tokens: readonly unknown[]): Promise<{ next: { logits: ReadonlyMap<number, number> } }[]>;
  evaluate(tokens: readonly number[], options: object): AsyncIterable<number>;
}

interface Library {
  readonly LlamaLogLevel: { readonly error: string };
  getLlama(options: object): Promise<{
    readonly llamaCppRelease: { readonly release: string };
    loadModel(options: object): Promise<LlamaModel>;
  }>;
}

interface LlamaModel {
  createContext(options: object): Promise<{ getSequence(): Sequence; dispose(): Promise<void> }>;
  dispose(): Promise<void>;
}

const HOME = process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank");
const PEER = join(HOME, "peers", "node-llama-cpp", "node_modules", "node-llama-cpp");
execFileSync("bash", [fileURLToPath(new URL("setup_peers.sh", import.meta.url)), "node-llama-cpp"], {
  stdio: ["ignore", "ignore", "inherit"],
});
const { getLlama, LlamaLogLevel }: Library = await import(pathToFileURL(join(PEER, "dist", "index.js")).href);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
// Beside the models: a merged one takes 540 MB, which /tmp may not have.
const scratch = mkdtempSync(join(HOME, "llama-cpp-"));
const tally = new Tally();
let status = 1;
try {
  await checkFixtures();
  await checkSmolLM2();
  const { version } = JSON.parse(readFileSync(join(PEER, "package.json"), "utf8"));
  status = tally.end(`llama.cpp ${llama.llamaCppRelease.release} (node-llama-cpp ${version}) runs`);
} finally {
  rmSync(scratch, { recursive: true });
}
process.exit(status);

/** Runs one model; a cache of f32, as f16 takes three digits, and one thread, as several spin where cores are shared. */
async function withSequence<T>(
  model: string,
  lora: string | null,
  run: (sequence: Sequence) => Promise<T>,
): Promise<T> {
  const loaded = await llama.loadModel({ modelPath: model });
  const cache = { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false };
  const context = await loaded.createContext({
    contextSize: 256,
    threads: 1,
    ...cache,
    ...(lora !== null && { lora }),
  });
  const result = await run(context.getSequence());
  await context.dispose();
  await loaded.dispose();
  return result;
}

/** The logits of all tokens, or of the last ones alone. */
async function logitsOf(sequence: Sequence, ids: readonly number[], last: number = ids.length): Promise<Rows> {
  await sequence.clearHistory();
  const next = { generateNext: { logits: true } };
  const outputs = await sequence.controlledEvaluate(ids.map((id, i) => i < ids.length - last ? id : [id, next]));
  return outputs.slice(ids.length - last).map(({ next: { logits } }) => {
    const row = new Float64Array(logits.size);
    for (const [token, logit] of logits) row[token] = logit;
    return row;
  });
}

async function checkPrompts(
  model: string,
  lora: string | null,
  { ids }: InteropCase,
  want: Rows,
): Promise<string> {
  const got = await withSequence(model, lora, async (sequence) => {
    const rows: ArrayLike<number>[] = [];
    for (const prompt of ids) rows.push(...await logitsOf(sequence, prompt));
    return rows;
  });
  return requireNear(got, want);
}

async function writeGguf(adapter: Adapter, facts: WriteDialectOptions): Promise<string> {
  const sink = memorySink();
  await writeAdapter(adapter, "gguf", sink, facts);
  return writeScratch("adapter.gguf", sink.files.get("adapter.gguf")!);
}

function writeScratch(name: string, bytes: Uint8Array): string {
  const path = join(scratch, name);
  writeFileSync(path, bytes);
  return path;
}

/** A base of the fixtures as llama.cpp takes it: its tokenizer is one of no use, as the prompts are tokens. */
async function writeBase(name: "llama" | "qwen3"): Promise<string> {
  const [numbers, heads] = name === "llama" ? [LLAMA, HEADS] as const : [QWEN3, null] as const;
  const tensors = convert(await readCheckpoint(folder(join(FIXTURES, "base", name))), heads);
  const count = tensors.get("token_embd.weight")!.shape[0]!;
  const source = ggufSource(`${name}.gguf`, {
    metadata: {
      ...metadata(name, numbers),
      [`${name}.rope.freq_base`]: { f32: numbers["rope.freq_base"] },
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.tokens": Array.from({ length: count }, (_, i) => i === 0 ? "Ċ" : `t${i}`),
      "tokenizer.ggml.merges": ["t 1"],
    },
    tensors,
  });
  return writeScratch(`${name}.gguf`, await source.read(0, await source.size()));
}

async function checkFixtures(): Promise<void> {
  for (const name of ["llama", "qwen3"] as const) {
    const base = await writeBase(name);
    const from = folder(join(FIXTURES, "base", name));
    const facts: WriteDialectOptions = await readBaseFacts(from);
    const cases = await readCases([`base/${name}`]);
    await tally.run(`${name}, the base`, () => checkPrompts(base, null, cases[0]!, cases[0]!.plain));
    for (const one of cases) {
      // What it would lose is the base's own table, which PEFT saves beside the factors of an embedding.
      const allowLoss = one.name === "llama-embedding";
      const adapter = await loadAdapter(folder(join(FIXTURES, one.name, "adapter")), { allowPickle: true });
      await checkCase(one, adapter, { base, facts: { ...facts, allowLoss } });
    }
    if (name === "llama") await checkCase(await headCase(), await headAdapter(), { base, facts });
  }
}

/** An adapter beside its base and in it, as far as GGUF can hold it: what is refused by name is no case. */
async function checkCase(
  one: InteropCase,
  adapter: Adapter,
  { base, facts }: { readonly base: string; readonly facts: WriteDialectOptions },
): Promise<void> {
  const lora = await unlessRefused(() => writeGguf(adapter, facts));
  if (lora !== null) await tally.run(one.name, () => checkPrompts(base, lora, one, one.adapted));
  const merged = await unlessRefused(() => mergeInto(base, adapter));
  if (merged !== null) await tally.run(`${one.name}, merged`, () => checkPrompts(merged, null, one, one.adapted));
}

async function mergeInto(base: string, adapter: Adapter, outType?: "f32"): Promise<string> {
  const name = "merged.gguf";
  rmSync(join(scratch, name), { force: true });
  await mergeGguf(file(base), [{ adapter }], folder(scratch), { file: name, ...(outType && { outType }) });
  return join(scratch, name);
}

async function unlessRefused(write: () => Promise<string>): Promise<string | null> {
  try {
    return await write();
  } catch (error) {
    if (error instanceof MismatchError && ["loss", "unsupported"].includes(error.code)) return null;
    throw error;
  }
}

/** An adapter of every matrix, the embedding and the head too, which PEFT's fixtures have not. */
async function headAdapter(): Promise<Adapter> {
  const { tensors } = await openCheckpoint(folder(join(FIXTURES, "base/llama")));
  const matrices = [...tensors.values()].filter(({ shape }) => shape.length === 2);
  const modules = matrices.map(({ name, shape: [rows = 0, columns = 0] }) => {
    const [path, isTable] = [name.replace(/\.weight$/, ""), name.includes("embed")];
    const [inFeatures, outFeatures] = isTable ? [rows, columns] : [columns, rows];
    return { name: path, kind: isTable ? "embedding" as const : "linear" as const, inFeatures, outFeatures };
  });
  const targetModules = modules.map(({ name }) => name);
  return await createAdapter({ modules, targetModules, r: 3, loraAlpha: 4, useRslora: true, init: false });
}

/** What loadModel() computes with it. */
async function headCase(): Promise<InteropCase> {
  const ids = [[5, 17, 99, 4, 42, 7, 60]];
  const sink = memorySink();
  await saveAdapter(await headAdapter(), sink);
  const model = await loadModel(folder(join(FIXTURES, "base/llama")), { dtype: "f32" });
  await model.loadAdapter("head", memoryFolder(sink.files));
  const rows = async (adapter: string | null): Promise<Rows> => {
    const { values } = await model.forward(ids, { adapter });
    const width = values.length / ids[0]!.length;
    return ids[0]!.map((_, i) => values.slice(i * width, (i + 1) * width));
  };
  const [plain, adapted] = [await rows(null), await rows("head")];
  model.dispose();
  return { name: "embedding and head, as loadModel()", base: "base/llama", ids, plain, adapted };
}

interface SmolCase {
  readonly key: string;
  readonly promptIds: readonly number[];
  readonly adapter: unknown;
  readonly tokens: readonly number[];
  readonly safe: number;
}

/** Real adapters of a real model: the first logits and greedy tokens, as transformers and PEFT have them. */
async function checkSmolLM2(): Promise<void> {
  const base = await modelIn(HOME, "f32");
  const facts = await readBaseFacts(await ggufFolder(file(base)));
  const cases: SmolCase[] = JSON.parse(readFileSync(join(FIXTURES, "smollm2/cases.json"), "utf8"));
  await checkAnswers("SmolLM2, the base", base, { lora: null, cases: cases.filter(({ adapter }) => adapter === null) });
  for (const name of ["emotion", "summary"]) {
    const adapter = await loadAdapter(folder(join(FIXTURES, "smollm2/adapters", name)));
    const own = cases.filter((one) => one.adapter === name);
    const lora = await writeGguf(adapter, facts);
    await checkAnswers(`SmolLM2 ${name}`, base, { lora, cases: own });
    await checkAnswers(`SmolLM2 ${name}, merged`, await mergeInto(base, adapter), { lora: null, cases: own });
  }
}

async function checkAnswers(
  name: string,
  model: string,
  { lora, cases }: { readonly lora: string | null; readonly cases: readonly SmolCase[] },
): Promise<void> {
  const source = file(join(FIXTURES, "smollm2/last_logits.safetensors"));
  const { tensors } = await readSafetensorsHeader(source);
  await tally.run(name, () =>
    withSequence(model, lora, async (sequence) => {
      const found: string[] = [];
      for (const { key, promptIds, tokens, safe } of cases) {
        const want = toFloat32(await readTensor(source, tensors.get(key)!));
        found.push(requireNear(await logitsOf(sequence, promptIds, 1), [want], 1e-4));
        await requireTokens(sequence, promptIds, tokens.slice(0, safe));
      }
      return `${found.join(", ")}; greedy tokens`;
    }));
}

async function requireTokens(sequence: Sequence, ids: readonly number[], want: readonly number[]): Promise<void> {
  await sequence.clearHistory();
  const got: number[] = [];
  for await (const token of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
    if (got.push(token) === want.length) break;
  }
  if (got.join() !== want.join()) throw new Error(`tokens are ${got}, expected ${want}`);
}
