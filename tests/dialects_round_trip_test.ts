import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter, ReportLine } from "../src/adapter/adapter.ts";
import { DIALECTS, readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { Dialect, ReadDialectOptions } from "../src/adapter/dialects/options.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { assertSame, deltaError, FACTS, randomAdapter } from "./dialects_support.ts";

const SEEDS = Array.from({ length: 100 }, (_, seed) => seed);

interface Trip {
  readonly dialect: Dialect;
  readonly adapter: Adapter;
  readonly report: readonly ReportLine[];
  readonly files: ReadonlyMap<string, Uint8Array>;
}

async function roundTrip(adapter: Adapter, to: Dialect, options: ReadDialectOptions = {}): Promise<Trip> {
  const sink = memorySink();
  const report = await writeAdapter(adapter, to, sink, FACTS);
  const alpha = adapter.config.loraAlpha || 1;
  const read = await readAdapter(memoryFolder(sink.files), { ...(to === "loralib" && { alpha }), ...options });
  return { ...read, report, files: sink.files };
}

function isFolded({ report }: Trip): boolean {
  return report.some(({ what }) => what.includes("folded"));
}

for (const to of DIALECTS) {
  test(`100 random adapters come back from ${to} with every bit and scale, or folded and reported`, async () => {
    let folded = 0;
    for (const seed of SEEDS) {
      const adapter = await randomAdapter(seed);
      const trip = await roundTrip(adapter, to);
      assert.equal(trip.dialect, to);
      if (!isFolded(trip)) {
        assertSame(trip.adapter, adapter, `seed ${seed}`);
        if (to !== "loralib") assert.equal(trip.adapter.config.useRslora, adapter.config.useRslora);
        continue;
      }
      folded++;
      const { error } = trip.report.find(({ what }) => what.includes("folded"))!;
      assert(error !== undefined && error < 6e-8, `seed ${seed}: ${error}`);
      const difference = deltaError(trip.adapter, adapter);
      assert(error === 0 ? difference < 1e-15 : difference < 6e-8, `seed ${seed}: ${difference}, ${error}`);
    }
    const some = { peft: 0, diffusers: 0, kohya: 10, mlx: 30, gguf: 30, loralib: 30 }[to];
    assert(folded >= some && folded < 90, `${folded} folded`);
    if (some === 0) assert.equal(folded, 0);
  });
}

test("a second round trip through a dialect changes nothing", async () => {
  for (const to of DIALECTS) {
    for (const seed of SEEDS.slice(0, 20)) {
      const once = (await roundTrip(await randomAdapter(seed), to)).adapter;
      const twice = await roundTrip(once, to);
      assert(!isFolded(twice) || twice.report.every(({ error = 0 }) => error === 0), `${to} ${seed}`);
      assert.equal(deltaError(twice.adapter, once), 0, `${to} ${seed}`);
    }
  }
});

test("scales that are powers of two fold into B without an error", async () => {
  const adapter = await randomAdapter(3);
  for (const to of ["gguf", "mlx", "loralib"] as const) {
    let at = 0;
    const modules = new Map(
      Array.from(adapter.modules, ([name, module]) => [name, { ...module, scaling: 2 ** (at++ % 5 - 2) }] as const),
    );
    assert(modules.size > 1);
    const sink = memorySink();
    const mixed = Object.assign(Object.create(Object.getPrototypeOf(adapter)), adapter, { modules }) as Adapter;
    const report = await writeAdapter(mixed, to, sink, { ...FACTS, alpha: adapter.config.r });
    assert.equal(report.find(({ what }) => what.includes("folded"))?.error, 0, to);
    const read = await readAdapter(memoryFolder(sink.files), { alpha: adapter.config.r });
    assert.equal(deltaError(read.adapter, mixed), 0, to);
    for (const [name, { loraB }] of read.adapter.modules) assert.equal(loraB.dtype, modules.get(name)!.loraB.dtype);
  }
});

/** The same file without what only this package puts into it. */
async function strip(bytes: Uint8Array): Promise<Uint8Array> {
  const source = memorySource("a.safetensors", bytes);
  const { tensors } = await readSafetensorsHeader(source);
  const stored = new Map<string, StoredTensor>();
  for (const [name, info] of tensors) stored.set(name, await readTensor(source, info));
  return encodeSafetensors(stored);
}

test("Kohya's files are read the same without what PEFT put into their header, to the rounding of alphas", async () => {
  for (const seed of SEEDS) {
    const adapter = await randomAdapter(seed);
    const sink = memorySink();
    await writeAdapter(adapter, "kohya", sink);
    const bytes = await strip(sink.files.get("lora.safetensors")!);
    for (const options of [{}, { modules: FACTS.modules }]) {
      const { adapter: read } = await readAdapter(memorySource("a.safetensors", bytes), options);
      assert(deltaError(read, adapter) < 1e-7, `seed ${seed}`);
      assert.equal(read.config.useRslora, false);
    }
  }
});
