import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, LimitError } from "../src/errors.ts";
import { memorySource } from "../src/formats/memory.ts";
import { readTorch } from "../src/formats/torch.ts";
import { fixture } from "./adapter_fixtures.ts";

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

/** Marsaglia's xorshift: the same mutations on every machine. */
function randomBelow(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % limit;
  };
}

const OPCODES = [..."()GJKMNQRX]abcehjqrstu}.0Ppoi2Sx", "\x80", "\x85", "\x86", "\x87", "\x88", "\x89", "\x8a", "\x93"];
const GLOBALS = [
  "os\nsystem\n",
  "torch\nIntStorage\n",
  "collections\nOrderedDict\n",
  "torch._utils\n_rebuild_tensor_v2\n",
];
const EXTREMES = [0n, 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

function mutate(file: Uint8Array, below: (limit: number) => number, reach: readonly [number, number]): Uint8Array {
  let bytes = file.slice();
  for (let count = 1 + below(4); count > 0 && bytes.length > reach[1]; count--) {
    const at = reach[0] + below(reach[1] - reach[0] - 8);
    const kind = below(7);
    if (kind === 0) bytes[at]! ^= 1 << below(8);
    else if (kind === 1) bytes[at] = below(256);
    else if (kind === 2) bytes[at] = OPCODES[below(OPCODES.length)]!.charCodeAt(0);
    else if (kind === 3) new DataView(bytes.buffer).setBigUint64(at, EXTREMES[below(EXTREMES.length)]!, true);
    else if (kind === 4) bytes.copyWithin(at, reach[0] + below(reach[1] - reach[0]), reach[1]);
    else if (kind === 5) bytes.set(text(GLOBALS[below(GLOBALS.length)]!).subarray(0, reach[1] - at), at);
    else if (below(10) === 0) bytes = bytes.slice(0, at);
  }
  return bytes;
}

test("mutated torch files give a typed error or tensors inside the file", async () => {
  const original = fixture("llama-bin/adapter/adapter_model.bin");
  const start = 64; // The pickle; its entry's header is 64 bytes long.
  const places = [[start, start + 1088], [0, 200], [original.length - 1100, original.length - 1]] as const;
  for (const [seed, reach] of places.entries()) {
    const below = randomBelow(seed + 1);
    let refusals = 0;
    for (let round = 0; round < 4000; round++) {
      try {
        for (const { bytes } of (await readTorch(memorySource("a.bin", mutate(original, below, reach)))).values()) {
          assert.ok(bytes.length <= 2 ** 26);
        }
      } catch (error) {
        refusals++;
        const isTyped = error instanceof FormatError || error instanceof LimitError;
        if (!isTyped) throw new Error(`round ${round} of place ${seed}`, { cause: error });
      }
    }
    assert.ok(refusals > 400 && refusals < 4000, `${refusals} of 4000 refused at place ${seed}`);
  }
});
