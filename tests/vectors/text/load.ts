import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { memoryFolder } from "../../../src/formats/memory.ts";
import type { GgufValue } from "../../../src/formats/gguf.ts";
import { ggufTokenizer, loadTokenizer, type Tokenizer } from "../../../src/text/mod.ts";

/** What the Rust tokenizers say of one tokenizer. */
export interface Expected {
  /** Text, its ids, and the ids' text. */
  readonly rows: readonly (readonly [text: string, ids: number[], decoded: string])[];
  /** The texts' ids where special tokens are plain text. */
  readonly plain: readonly number[][];
  /** "Hello" with what `addSpecial` adds. */
  readonly around?: number[];
}

export interface ChatRow {
  readonly template: string;
  readonly messages: { role: string; content: string }[];
  readonly addGenerationPrompt: boolean;
  readonly variables: Record<string, unknown>;
  readonly text: string;
  readonly ids: number[];
}

function read<T>(file: string): T {
  return JSON.parse(gunzipSync(readFileSync(new URL(file, import.meta.url))).toString());
}

function expected(): Record<string, Expected> {
  return read("expected.json.gz");
}

export function chats(): { templates: Record<string, string>; rows: ChatRow[] } {
  return read("chats.json.gz");
}

/** tokenizer.json files by name, and the metadata of a SentencePiece GGUF. */
export function small(): { files: Record<string, Record<string, unknown>>; gguf: Record<string, GgufValue> } {
  return read("small.json.gz");
}

interface Smollm2 {
  readonly metadata: Record<string, GgufValue>;
  /** The tokens that no merge makes. The others are what their merge makes, in the order of the merges. */
  readonly first: string[];
  readonly controls: number;
  readonly merges: string[];
  /** The tokenizer.json, without vocabulary and merges. */
  readonly file: Record<string, unknown>;
}

function smollm2Tokens({ first, merges }: Smollm2): string[] {
  return [...first, ...merges.map((merge) => merge.replace(" ", ""))];
}

/** The tokenizer metadata of SmolLM2-135M-Instruct's GGUF. */
export function smollm2Metadata(): Map<string, GgufValue> {
  const stored = read<Smollm2>("smollm2.json.gz");
  const tokens = smollm2Tokens(stored);
  return new Map<string, GgufValue>([
    ...Object.entries(stored.metadata),
    ["tokenizer.ggml.tokens", tokens],
    ["tokenizer.ggml.merges", stored.merges],
    ["tokenizer.ggml.token_type", tokens.map((_, id) => id < stored.controls ? 3 : 1)],
  ]);
}

/** SmolLM2's tokenizer.json. */
function smollm2File(): Record<string, unknown> {
  const stored = read<Smollm2>("smollm2.json.gz");
  const vocab = Object.fromEntries(smollm2Tokens(stored).map((token, id) => [token, id]));
  return { ...stored.file, model: { type: "BPE", vocab, merges: stored.merges } };
}

/** Loads a folder of JSON files (text is taken as it is). */
export async function fromFiles(files: Record<string, unknown>): Promise<Tokenizer> {
  const encoder = new TextEncoder();
  const bytes = Object.entries(files).map(([name, value]): [string, Uint8Array] => [
    name,
    encoder.encode(typeof value === "string" ? value : JSON.stringify(value)),
  ]);
  return await loadTokenizer(memoryFolder(new Map(bytes)));
}

/** The tiny model's tokenizer. */
export async function tiny(): Promise<Tokenizer> {
  const base = new URL("../../../examples/models/tiny/base/", import.meta.url);
  const names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"];
  return await fromFiles(Object.fromEntries(names.map((name) => [name, readFileSync(new URL(name, base), "utf8")])));
}

/** Every tokenizer with what is expected of it: from tokenizer.json files and, last, from GGUF metadata. */
export async function tokenizers(): Promise<{ name: string; tokenizer: Tokenizer; want: Expected }[]> {
  const { files, gguf } = small();
  const want = expected();
  const all = [{ name: "tiny", tokenizer: await tiny(), want: want.tiny! }];
  for (const [name, file] of Object.entries({ ...files, smollm2: smollm2File() })) {
    all.push({ name, tokenizer: await fromFiles({ "tokenizer.json": file }), want: want[name]! });
  }
  all.push({ name: "smollm2 GGUF", tokenizer: ggufTokenizer(smollm2Metadata()), want: want.smollm2! });
  all.push({ name: "llama GGUF", tokenizer: ggufTokenizer(new Map(Object.entries(gguf))), want: want.llama! });
  return all;
}

/** Small repeatable random numbers: `next(n)` is below n. */
export function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * below);
  };
}
