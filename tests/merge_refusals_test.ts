import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { IntegrityError, MismatchError, NumericError } from "../src/errors.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { encodeF16 } from "../src/formats/float16.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import type { Folder } from "../src/formats/source.ts";
import {
  filled,
  fixtureFolder,
  merged,
  MODEL,
  recordingSink,
  sharded,
  smallAdapter,
  smallBase,
} from "./adapter_fixtures.ts";

const small = (change: Parameters<typeof smallAdapter>[0] = {}) => loadAdapter(smallAdapter(change));

test("adapters that do not fit are refused before the first file is created", async () => {
  const fits = await small();
  const wrong: readonly (readonly [string, Adapter, ReadonlyMap<string, Uint8Array>])[] = [
    ["no such module", await loadAdapter(fixtureFolder("llama-plain/adapter")), smallBase()],
    ["another shape", fits, smallBase({ "layers.0.q_proj.weight": filled([6, 5]) })],
    ["not a matrix", fits, smallBase({ "layers.0.q_proj.weight": filled([24]) })],
    ["a target without tensors", fits, smallBase({ "layers.1.q_proj.weight": filled([6, 4]) })],
    [
      "quantised",
      fits,
      smallBase({ "layers.0.q_proj.weight": { dtype: "I8", shape: [6, 4], bytes: new Uint8Array(24) } }),
    ],
  ];
  for (const [what, adapter, base] of wrong) {
    const sink = recordingSink();
    const adapters = [{ adapter: fits, weight: 0.5 }, { adapter }];
    await assert.rejects(mergeCheckpoint(memoryFolder(base), adapters, sink), MismatchError, what);
    assert.deepEqual(sink.log, [], what);
  }
  for (const weight of [NaN, Infinity]) {
    const sink = recordingSink();
    const adapters = [{ adapter: fits, weight }];
    await assert.rejects(mergeCheckpoint(memoryFolder(smallBase()), adapters, sink), NumericError);
    assert.deepEqual(sink.log, []);
  }
});

test("strict: false merges an adapter that lacks targets, and reports them", async () => {
  const base = memoryFolder(smallBase({ "layers.1.q_proj.weight": filled([6, 4]) }));
  const report = await mergeCheckpoint(base, [{ adapter: await small() }], memorySink(), { strict: false });
  assert.deepEqual(report.merged, ["layers.0.q_proj.weight"]);
  assert.deepEqual(report.report.map(({ module }) => module), ["layers.1.q_proj"]);
  const other = { adapter: await loadAdapter(fixtureFolder("llama-plain/adapter")) };
  await assert.rejects(mergeCheckpoint(base, [other], memorySink(), { strict: false }), MismatchError);
});

test("a result that is not finite is refused by tensor name, and nothing is left", async () => {
  const name = "layers.0.q_proj.weight";
  const infinite = filled([6, 4], Infinity);
  const large = { dtype: "F16", shape: [6, 4], bytes: encodeF16(new Float32Array(24).fill(65504)) } as const;
  const strong = await small({ config: { lora_alpha: 65504 } });
  const refusals: readonly (readonly [Adapter, StoredTensor, "f16" | undefined])[] = [
    [await small(), infinite, undefined],
    [strong, large, undefined],
    [strong, filled([6, 4], 65504), "f16"],
  ];
  for (const [adapter, weight, dtype] of refusals) {
    const sink = recordingSink();
    const base = memoryFolder(smallBase({ [name]: weight }));
    const options = dtype ? { dtype } : {};
    await assert.rejects(mergeCheckpoint(base, [{ adapter }], sink, options), { name: "NumericError", tensor: name });
    assert.deepEqual([sink.log, sink.files.size], [[`create ${MODEL}`, `abort ${MODEL}`], 0]);
  }
});

test("a value that another dtype cannot hold is refused; what was infinite before stays", async () => {
  const adapter = await small();
  const mask = filled([2], -Infinity);
  assert.equal(toFloat32((await merged(smallBase({ mask }), adapter, { dtype: "f16" })).get("mask")!)[0], -Infinity);
  const large = new Uint8Array(Float32Array.of(-Infinity, 1e6).buffer);
  const base = memoryFolder(smallBase({ mask: { ...mask, bytes: large } }));
  const refused = mergeCheckpoint(base, [{ adapter }], memorySink(), { dtype: "f16" });
  await assert.rejects(refused, { name: "NumericError", tensor: "mask" });
});

test("mergeCheckpoint() stops after any piece when the signal aborts, and nothing is left", async () => {
  const adapter = await small();
  for (const files of [smallBase({ norm: filled([3]) }), sharded()]) {
    for (const stopAt of [1, 2]) {
      const controller = new AbortController();
      const reason = new Error("stop");
      const sink = recordingSink();
      let pieces = 0;
      const onProgress = () => ++pieces === stopAt && controller.abort(reason);
      const inner = memoryFolder(files);
      const base: Folder = { name: "deaf", has: (file) => inner.has(file), open: (file) => inner.open(file) };
      const merging = mergeCheckpoint(base, [{ adapter }], sink, { signal: controller.signal, onProgress });
      await assert.rejects(merging, reason);
      assert.equal(sink.files.size, 0);
      assert.equal(sink.log.filter((line) => line.startsWith("commit")).length, 0);
    }
  }
  const signal = AbortSignal.abort();
  const sink = recordingSink();
  await assert.rejects(mergeCheckpoint(memoryFolder(smallBase()), [{ adapter }], sink, { signal }), {
    name: "AbortError",
  });
  assert.deepEqual(sink.log, []);
});

test("no file has its final name before all are written", async () => {
  const sink = recordingSink();
  await mergeCheckpoint(memoryFolder(sharded()), [{ adapter: await small() }], sink);
  const firstCommit = sink.log.findIndex((line) => line.startsWith("commit"));
  assert.deepEqual(sink.log.slice(firstCommit).filter((line) => line.startsWith("create")), []);
});

test("a base that changes after it was checked is refused", async () => {
  const inner = memoryFolder(smallBase());
  const other = memoryFolder(smallBase({ more: filled([1]) }));
  let opened = 0;
  const base: Folder = {
    name: "changing",
    has: inner.has.bind(inner),
    open: (file) => (opened++ ? other : inner).open(file),
  };
  const sink = recordingSink();
  await assert.rejects(mergeCheckpoint(base, [{ adapter: await small() }], sink), IntegrityError);
  assert.equal(sink.files.size, 0);
});
