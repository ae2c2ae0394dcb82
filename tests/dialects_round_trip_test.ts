import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Adapter, ReportLine } from "../src/adapter/adapter.ts";
import { DIALECTS, readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { Dialect } from "../src/adapter/dialects/options.ts";
import { CONFIG_DEFAULTS } from "../src/adapter/config_defaults.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { readGguf } from "../src/formats/gguf.ts";
import { readSafetensorsHeader } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import {
  ADAPTERS,
  type AdapterSpec,
  assertSame,
  buildAdapter,
  deltaError,
  deltaOf,
  FACTS,
  foreign,
  peftFiles,
  randomAdapter,
  store,
  strip,
  tensorsOf,
} from "./dialects_support.ts";
import { fixtureFolder } from "./adapter_fixtures.ts";
import { random } from "./values.ts";

const SEEDS = Array.from({ length: 100 }, (_, seed) => seed);

const SPEC: AdapterSpec = {
  ...{ dtype: "F32", r: 2, alpha: 4, rslora: false, dora: false, seed: 1 },
  modules: [{ name: FACTS.modules[0]!, rank: null, alpha: null }],
};

interface Trip {
  readonly dialect: Dialect;
  readonly adapter: Adapter;
  readonly report: readonly ReportLine[];
  readonly files: ReadonlyMap<string, Uint8Array>;
}

async function roundTrip(adapter: Adapter, to: Dialect): Promise<Trip> {
  const sink = memorySink();
  const report = await writeAdapter(adapter, to, sink, FACTS);
  return { ...await readAdapter(memoryFolder(sink.files)), report, files: sink.files };
}

/** What a config says, its silence included. */
function meaning({ config }: Adapter): Record<string, unknown> {
  return Object.fromEntries(new Map([...CONFIG_DEFAULTS, ...config.raw]));
}

const NO_DORA: readonly Dialect[] = ["gguf", "loralib"];
const TABLES: readonly Dialect[] = ["peft", "gguf", "mlx", "loralib"];

for (const to of DIALECTS) {
  test(`100 random adapters come back from ${to} with every bit, scale and word of their config`, async () => {
    let folded = 0;
    const property = fc.asyncProperty(ADAPTERS, async (spec) => {
      const dora = spec.dora && !NO_DORA.includes(to);
      const table = spec.table === true && TABLES.includes(to) && !(dora && to === "mlx");
      const adapter = await buildAdapter({ ...spec, dora, table });
      const trip = await roundTrip(adapter, to);
      assert.equal(trip.dialect, to);
      assertSame(trip.adapter, adapter, to);
      assert.deepEqual(meaning(trip.adapter), meaning(adapter));
      if (trip.report.some(({ what, error }) => what.includes("folded") && error !== 0)) folded++;
    });
    await fc.assert(property, { numRuns: 100, seed: 6 });
    const least = { peft: 0, diffusers: 0, kohya: 0, mlx: 25, gguf: 25, loralib: 60 }[to];
    assert(folded >= least, `${folded} folded`);
  });
}

test("what other tools read of these files is the same to the rounding of a 32-bit float", async () => {
  for (const to of ["gguf", "mlx", "loralib"] as const) {
    const property = fc.asyncProperty(ADAPTERS, async (spec) => {
      const adapter = await buildAdapter({ ...spec, dora: false });
      const { files, report } = await roundTrip(adapter, to);
      const error = Math.max(0, ...report.map((line) => line.error ?? 0));
      assert(error < 6e-8, `${error}`);
      const { adapter: read } = await readAdapter(await foreign(files), { alpha: adapter.config.loraAlpha || 1 });
      const difference = deltaError(read, adapter);
      assert(error === 0 ? difference < 1e-15 : difference < 6e-8, `${to} ${difference}, ${error}`);
    });
    await fc.assert(property, { numRuns: 30, seed: 7 });
  }
});

test("a file that was changed since means what it says, whatever it carries", async () => {
  for (const to of ["gguf", "mlx", "loralib"] as const) {
    const property = fc.asyncProperty(ADAPTERS, fc.nat(), async (spec, place) => {
      const adapter = await buildAdapter({ ...spec, dora: false });
      const sink = memorySink();
      const file = to === "gguf" ? "a.gguf" : "adapters.safetensors";
      await writeAdapter(adapter, to, sink, { ...FACTS, ...(to !== "mlx" && { file }) });
      const changed = sink.files.get(file)!.slice();
      const source = memorySource(file, changed);
      const { tensors } = await (to === "gguf" ? readGguf(source) : readSafetensorsHeader(source));
      const factors = [...tensors.values()].filter(({ name }) => /lora_b$/i.test(name));
      const { offset, length } = factors[place % factors.length]!;
      changed[offset + place % length]! ^= 1 << place % 8;
      const edited = new Map(sink.files).set(file, changed);
      const other = await readAdapter(await foreign(edited), { alpha: adapter.config.loraAlpha || 1 }).catch(() =>
        null
      );
      fc.pre(other !== null);
      const { adapter: read } = await readAdapter(memoryFolder(edited));
      const difference = deltaError(read, other.adapter);
      assert(difference < 1.2e-7, `${to} ${difference}`);
    });
    await fc.assert(property, { numRuns: 30, seed: 8 });
  }
});

test("a second round trip through a dialect changes nothing", async () => {
  for (const to of DIALECTS) {
    for (const seed of SEEDS.slice(0, 20)) {
      const once = (await roundTrip(await randomAdapter(seed), to)).adapter;
      assertSame((await roundTrip(once, to)).adapter, once, `${to} ${seed}`);
    }
  }
});

test("a scale of 0 stays one, where an alpha of 0 means another thing too", async () => {
  for (const to of DIALECTS) {
    const original = await buildAdapter({ ...SPEC, alpha: 0 });
    const { adapter, files } = await roundTrip(original, to);
    assertSame(adapter, original, to);
    const alone = to === "peft" || to === "diffusers" ? files : null;
    const { adapter: read } = await readAdapter(alone ? memoryFolder(alone) : await foreign(files), { alpha: 1 });
    for (const module of read.modules.values()) assert(deltaOf(module).every((value) => value === 0), to);
  }
});

test("a file whose B was changed after folding keeps what it says", async () => {
  const modules = FACTS.modules.slice(0, 2).map((name, i) => ({ name, rank: null, alpha: 3 + i }));
  const adapter = await buildAdapter({ ...SPEC, dtype: "BF16", r: 3, rslora: true, modules });
  const sink = memorySink();
  await writeAdapter(adapter, "mlx", sink);
  const bytes = sink.files.get("adapters.safetensors")!;
  // What was widened to F32 lies before all else.
  bytes[8 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)]! ^= 1;
  const { adapter: read } = await readAdapter(memoryFolder(sink.files));
  const found = modules.map(({ name }) => read.modules.get(name)!);
  assert.deepEqual(found.map(({ loraB }) => loraB.dtype), ["F32", "BF16"]);
  // That of k, which is the first in the file.
  for (const { scaling } of found) assert(Math.abs(scaling - 4 / Math.sqrt(3)) < 1e-15, `${scaling}`);
  assert(read.report.some(({ what }) => what.includes("another rank or scale")));
});

test("what is no rounding of a file's B is passed over", async () => {
  const modules = FACTS.modules.slice(0, 2).map((name, i) => ({ name, rank: null, alpha: 3 + i }));
  const adapter = await buildAdapter({ ...SPEC, modules });
  const sink = memorySink();
  await writeAdapter(adapter, "loralib", sink, { file: "lora.safetensors", alpha: 3 });
  const source = memorySource("lora.safetensors", sink.files.get("lora.safetensors")!);
  const { metadata } = await readSafetensorsHeader(source);
  const roundings: Record<string, string> = JSON.parse(metadata.get("lowrank.rounding.0")!);
  const [[module, rounding]] = Object.entries(roundings) as [[string, string]];
  const folded = (await readAdapter(await foreign(sink.files), { alpha: 3 })).adapter;
  assertSame((await readAdapter(source)).adapter, adapter, "as it is");
  for (const text of ["", "!", "AAAA", rounding.slice(0, 4), btoa("\xff".repeat(400))]) {
    const carried = new Map(metadata).set("lowrank.rounding.0", JSON.stringify({ ...roundings, [module]: text }));
    const file = encodeSafetensors(await tensorsOf(source), carried);
    const { adapter: read } = await readAdapter(memorySource("lora.safetensors", file));
    assertSame(read, folded, text);
  }
});

test("scales that are powers of two fold into B without an error", async () => {
  const modules = FACTS.modules.slice(0, 5).map((name) => ({ name, rank: null, alpha: null }));
  const adapter = await buildAdapter({ ...SPEC, dtype: "F16", modules });
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

test("Kohya's files are read the same without what PEFT put into their header, to the rounding of alphas", async () => {
  for (const seed of SEEDS) {
    const adapter = await randomAdapter(seed);
    const sink = memorySink();
    await writeAdapter(adapter, "kohya", sink);
    const bytes = await strip("lora.safetensors", sink.files.get("lora.safetensors")!);
    for (const options of [{}, { modules: FACTS.modules }]) {
      const { adapter: read } = await readAdapter(memorySource("a.safetensors", bytes), options);
      assert(deltaError(read, adapter) < 1e-7, `seed ${seed}`);
      assert.equal(read.config.useRslora, false);
    }
  }
});

type Held = readonly [tensors: Map<string, StoredTensor>, config: object, holders: readonly Dialect[]];

/** Modules that are more than factors of a linear layer, and the dialects that hold them. */
function otherKinds(): readonly Held[] {
  const next = random(5);
  const matrix = (...shape: number[]): StoredTensor => ({
    ...store("BF16", 1, shape.reduce((a, b) => a * b), next),
    shape,
  });
  const conv = new Map([["mid_block.conv1.lora_A.weight", matrix(2, 3, 3, 3)], [
    "mid_block.conv1.lora_B.weight",
    matrix(4, 2, 1, 1),
  ]]);
  const table = new Map([["model.embed_tokens.lora_embedding_A", matrix(2, 9)], [
    "model.embed_tokens.lora_embedding_B",
    matrix(4, 2),
  ]]);
  const linear = new Map([["mid_block.proj.lora_A.weight", matrix(2, 3)], [
    "mid_block.proj.lora_B.weight",
    matrix(4, 2),
  ]]);
  return [
    [conv, {}, ["peft", "kohya", "diffusers", "loralib"]],
    [new Map([...conv, ["mid_block.conv1.lora_magnitude_vector", matrix(1, 4, 1, 1)]]), { use_dora: true }, [
      "peft",
      "kohya",
      "diffusers",
    ]],
    [new Map([...linear, ["mid_block.proj.lora_magnitude_vector", matrix(4)]]), { use_dora: true }, [
      "peft",
      "kohya",
      "diffusers",
      "mlx",
    ]],
    [new Map([...linear, ["mid_block.proj.lora_B.bias", matrix(4)]]), { lora_bias: true }, ["peft", "diffusers"]],
    [table, {}, ["peft", "gguf", "mlx", "loralib"]],
    [new Map([...table, ["model.embed_tokens.lora_magnitude_vector", matrix(4)]]), { use_dora: true }, ["peft"]],
  ];
}

test("convolutions, embeddings, DoRA and biases of B come back with every bit where the dialect has a place for them", async () => {
  for (const [tensors, config, holders] of otherKinds()) {
    const prefixed = new Map(Array.from(tensors, ([name, tensor]) => [`base_model.model.${name}`, tensor]));
    const adapter = await loadAdapter(peftFiles({ r: 2, lora_alpha: 2, ...config }, prefixed));
    for (const to of DIALECTS) {
      const what = `${to} ${[...tensors.keys()].join()}`;
      if (holders.includes(to)) assertSame((await roundTrip(adapter, to)).adapter, adapter, what);
      else await assert.rejects(roundTrip(adapter, to), { name: "MismatchError" }, what);
    }
  }
});

test("what a dialect has no place for is refused by name, and left out and reported with allowLoss", async () => {
  const adapter = await buildAdapter({ ...SPEC, dora: true });
  const name = `${SPEC.modules[0]!.name}.lora_magnitude_vector`;
  for (const to of ["gguf", "loralib"] as const) {
    const refusal = { name: "MismatchError", code: "loss", tensor: name, unexpected: [name] };
    await assert.rejects(writeAdapter(adapter, to, memorySink(), FACTS), refusal, to);
    const sink = memorySink();
    const report = await writeAdapter(adapter, to, sink, { ...FACTS, allowLoss: true });
    assert(report.some(({ module, what }) => module === name && what.includes("magnitudes of DoRA are left out")), to);
    const { adapter: read } = await readAdapter(memoryFolder(sink.files), { alpha: SPEC.alpha });
    const plain = new Map([...adapter.modules].map(([path, { magnitude: _, ...module }]) => [path, module]));
    assertSame(read, { modules: plain }, to);
    assert.equal(read.config.useDora, false);
  }
});

test("the base's own table, which PEFT saves beside an embedding's factors, is not told as another function", async () => {
  const adapter = await loadAdapter(fixtureFolder("llama-embedding/adapter"));
  const tensor = "model.embed_tokens.weight";
  for (const to of ["gguf", "mlx", "loralib"] as const) {
    const refusal = { code: "loss", tensor, message: /no place for tables of the base, first / };
    await assert.rejects(writeAdapter(adapter, to, memorySink(), FACTS), refusal, to);
    const [line] = await writeAdapter(adapter, to, memorySink(), { ...FACTS, allowLoss: true });
    const why = `${to} has no place for them: over the base that has them it is the same function`;
    assert.deepEqual(line, { module: tensor, what: "1 tables of the base are left out, this one first", why });
  }
});
