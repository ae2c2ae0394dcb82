import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { FormatError, LimitError, MismatchError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { readGguf, readGgufTensor } from "../src/formats/gguf.ts";
import { parseJson } from "../src/formats/json.ts";
import { memoryFolder, memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";

const ROUNDS = 3000;

/** Marsaglia's xorshift: the same mutations on every machine. */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed;
  }
  /** An integer from 0 to `limit` - 1. */
  below(limit: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % limit;
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

const TOKENS: readonly string[] = [
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  '"',
  "\\",
  "\\ud800",
  "null",
  "-0",
  "1e9",
  "4294967296",
  "9007199254740993",
  "18446744073709551615",
  '"shape"',
  '"__proto__"',
  '"F64"',
  "[0,0]",
  "../",
  "\0",
  "\ufeff",
];
const EXTREMES: readonly bigint[] = [0n, 1n, 31n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

/** Changes up to four places: a bit, a byte, a token, a 64-bit number, a cut or a copied piece. */
function mutate(random: Random, file: Uint8Array, reach: number): Uint8Array {
  let bytes = file.slice();
  for (let count = 1 + random.below(4); count > 0; count--) {
    if (bytes.length < 16) return bytes;
    const at = random.below(Math.min(reach, bytes.length - 8));
    const kind = random.below(6);
    if (kind === 0) bytes[at]! ^= 1 << random.below(8);
    else if (kind === 1) bytes[at] = random.below(256);
    else if (kind === 2) bytes.set(new TextEncoder().encode(random.pick(TOKENS)).subarray(0, bytes.length - at), at);
    else if (kind === 3) new DataView(bytes.buffer).setBigUint64(at, random.pick(EXTREMES), true);
    else if (kind === 4) bytes = bytes.slice(0, at + random.below(bytes.length - at));
    else bytes.copyWithin(at, random.below(bytes.length), random.below(bytes.length));
  }
  return bytes;
}

/** Runs every mutation; anything but a typed error fails, and so does a fuzzer that finds one answer only. */
async function fuzz(
  seed: number,
  file: Uint8Array,
  reach: number,
  read: (bytes: Uint8Array) => unknown,
): Promise<void> {
  const random = new Random(seed);
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const mutated = mutate(random, file, reach);
    try {
      await read(mutated);
    } catch (error) {
      refused++;
      const isTyped = error instanceof FormatError || error instanceof LimitError || error instanceof MismatchError;
      if (!isTyped) throw new Error(`round ${round} of seed ${seed}`, { cause: error });
    }
  }
  assert.ok(refused > ROUNDS / 10 && refused < ROUNDS, `${refused} of ${ROUNDS} refused`);
}

function fixture(path: string): Uint8Array {
  return new Uint8Array(readFileSync(new URL(path, import.meta.url)));
}

test("mutated safetensors files give a typed error or tensors inside the file", async () => {
  const file = fixture("./fixtures/llama-bf16/adapter/adapter_model.safetensors");
  await fuzz(1, file, 1400, async (bytes) => {
    const source = memorySource("a.safetensors", bytes);
    const { tensors } = await readSafetensorsHeader(source);
    for (const info of tensors.values()) await readTensor(source, info);
  });
});

test("mutated GGUF files give a typed error or tensors inside the file", async () => {
  const file = fixture("./vectors/gguf/tiny.gguf");
  await fuzz(2, file, 1400, async (bytes) => {
    const source = memorySource("a.gguf", bytes);
    const { tensors } = await readGguf(source);
    for (const info of tensors.values()) await readGgufTensor(source, info);
  });
});

test("mutated configs give a typed error or a value", async () => {
  const file = fixture("./fixtures/llama-patterns/adapter/adapter_config.json");
  await fuzz(3, file, file.length, (bytes) => {
    const text = new TextDecoder().decode(bytes);
    const value = parseJson(text, { file: "adapter_config.json" });
    // What we take, JSON.parse takes too.
    if (value !== undefined) JSON.parse(text);
  });
});

test("mutated shard indexes give a typed error or a checkpoint", async () => {
  const shard = fixture("./fixtures/llama-f16/adapter/adapter_model.safetensors");
  const { tensors } = await readSafetensorsHeader(memorySource("a", shard));
  const weightMap = Object.fromEntries([...tensors.keys()].map((name) => [name, "a.safetensors"]));
  const index = new TextEncoder().encode(JSON.stringify({ metadata: { total_size: 1 }, weight_map: weightMap }));
  await fuzz(4, index, index.length, async (bytes) => {
    await openCheckpoint(memoryFolder(new Map([["a.safetensors", shard], ["model.safetensors.index.json", bytes]])));
  });
});
