import assert from "node:assert/strict";
import { test } from "node:test";
import { type BaseModule, createAdapter, type CreateAdapterOptions } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { singularVectors } from "../src/adapter/svd.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";
import { fixture, fixtureFolder, MODEL, readTensors, tensorShapes } from "./adapter_fixtures.ts";
import { assertClose, at, noise } from "./merge_support.ts";

const CONV: readonly BaseModule[] = [
  { name: "conv1", kind: "conv", inFeatures: 5, outFeatures: 6, kernel: [3] },
  { name: "conv2", kind: "conv", inFeatures: 4, outFeatures: 6, kernel: [3, 5] },
  { name: "point", kind: "conv", inFeatures: 4, outFeatures: 7, kernel: [1, 1] },
  { name: "conv3", kind: "conv", inFeatures: 3, outFeatures: 6, kernel: [3, 3, 3] },
  { name: "head", inFeatures: 9, outFeatures: 4 },
];
const GROUPED: BaseModule = { name: "g", kind: "conv", inFeatures: 6, outFeatures: 8, kernel: [3], groups: 2 };
const TABLE: BaseModule = { name: "e", kind: "embedding", inFeatures: 40, outFeatures: 12 };
const EXPERTS: BaseModule = {
  name: "mlp.experts.down_proj",
  kind: "experts",
  parameter: "down_proj",
  inFeatures: 40,
  outFeatures: 32,
  experts: 4,
};

/** What a fixture adapts, with a few layers more. */
async function layersOf(name: string): Promise<BaseModule[]> {
  const { modules } = await loadAdapter(fixtureFolder(`${name}/adapter`));
  return [...modules.values(), { name: "spare", inFeatures: 3, outFeatures: 3 }];
}

test("createAdapter() makes the tensors that PEFT makes, of every kind, by name and shape", async () => {
  const dora = { useDora: true, weightOf: (name: string) => tensors.get(`${name}.weight`)! };
  const tensors = await readTensors(fixture(`base/conv/${MODEL}`));
  const cases: [name: string, base: readonly BaseModule[], more: Partial<CreateAdapterOptions>][] = [
    ["conv-plain", CONV, {}],
    ["conv-dora", CONV, dora],
    ["llama-embedding", await layersOf("llama-embedding"), {}],
    ["gpt2-lora-bias", await layersOf("gpt2-lora-bias"), { loraBias: true }],
    // Whatever order the caller has, the file's is that of the module.
    ["moe", (await layersOf("moe")).reverse(), { targetParameters: ["experts.down_proj", "mlp.experts.gate_up_proj"] }],
  ];
  for (const [name, modules, more] of cases) {
    const { config } = await loadAdapter(fixtureFolder(`${name}/adapter`));
    const sides = { modules, targetModules: config.targetModules!, r: config.r, loraAlpha: config.loraAlpha };
    const adapter = await createAdapter({ ...sides, taskType: config.taskType!, ...more });
    const sink = memorySink();
    await saveAdapter(adapter, sink);
    const want = await tensorShapes(fixture(`${name}/adapter/adapter_model.safetensors`));
    assert.deepEqual(await tensorShapes(sink.files.get("adapter_model.safetensors")!), want, name);
    const again = await loadAdapter(sink.files);
    const byName = (one: typeof adapter) => new Map([...one.modules].sort(([a], [b]) => a < b ? -1 : 1));
    assert.deepEqual(byName(again), byName(adapter), name);
  }
});

test("an adapter that was created changes no weight of any kind, with DoRA and biases too", async () => {
  const bases: [string, readonly BaseModule[], Partial<CreateAdapterOptions>][] = [
    ["conv", CONV, { targetModules: ["head", "conv1", "conv2", "point", "conv3"] }],
    ["conv", CONV, { targetModules: "all-linear", loraBias: true }],
    ["conv", CONV, { targetModules: "conv.", useDora: true }],
    ["llama", await layersOf("llama-embedding"), { targetModules: ["embed_tokens", "q_proj"], useDora: true }],
    ["mixtral", await layersOf("moe"), { targetParameters: ["mlp.experts.gate_up_proj"] }],
  ];
  for (const [name, modules, more] of bases) {
    const base = fixtureFolder(`base/${name}`);
    const checkpoint = await openCheckpoint(base);
    const weightOf = (module: string) => checkpoint.read(`${module}.weight`);
    const adapter = await createAdapter({ modules, r: 3, loraAlpha: 6, weightOf, ...more });
    const sink = memorySink();
    const { merged } = await mergeCheckpoint(base, [{ adapter }], sink);
    assert.ok(merged.length >= adapter.modules.size, `${name}: ${merged}`);
    const written = await readTensors(sink.files.get(MODEL)!);
    for (const tensor of merged.filter((one) => checkpoint.tensors.has(one))) {
      assertClose(written.get(tensor), at(await checkpoint.read(tensor)), `${name} ${tensor}`);
    }
  }
});

test("first values have the spread that PEFT gives each kind", async () => {
  const rms = (tensor: StoredTensor) => Math.sqrt(at(tensor).reduce((sum, v) => sum + v * v, 0) / at(tensor).length);
  const wide: BaseModule = { name: "c", kind: "conv", inFeatures: 20, outFeatures: 30, kernel: [3, 5] };
  const modules = [wide, TABLE, GROUPED, EXPERTS];
  const all = { modules, targetModules: ["c", "e", "g"], targetParameters: ["down_proj"], r: 16 };
  const near = (got: number, want: number) => assert.ok(Math.abs(got / want - 1) < 0.1, `${got}, not ${want}`);
  for (const init of [true, "gaussian", false] as const) {
    const { modules } = await createAdapter({ ...all, init });
    const [conv, table, grouped, experts] = ["c", "e", "g", EXPERTS.name].map((name) => modules.get(name)!);
    assert.deepEqual([grouped!.loraB.shape, experts!.loraA.shape, experts!.loraB.shape], [[8, 8, 1], [64, 40], [
      32,
      64,
    ]]);
    near(rms(conv!.loraA), init === "gaussian" ? 1 / 16 : 1 / Math.sqrt(3 * 20 * 15));
    near(rms(experts!.loraA), init === "gaussian" ? 1 / 16 : 1 / Math.sqrt(3 * 40));
    near(rms(table!.loraB), 1);
    assert.equal(rms(table!.loraA) === 0, init !== false);
    for (const { loraB } of [conv!, grouped!, experts!]) assert.equal(rms(loraB) === 0, init !== false);
    if (init !== false) continue;
    near(rms(grouped!.loraB), 1 / Math.sqrt(3 * 8));
    near(rms(experts!.loraB), 1 / Math.sqrt(3 * 64));
  }
});

test("mica gives an embedding the minor directions of its table", async () => {
  const weight = noise([40, 12], 3);
  const adapter = await createAdapter({
    modules: [TABLE],
    targetModules: ["e"],
    r: 2,
    init: "mica",
    weightOf: () => weight,
  });
  const { loraA, loraB } = adapter.modules.get("e")!;
  const { right } = singularVectors({ rows: 40, columns: 12, values: at(weight) });
  assert.ok(toFloat32(loraA).every((value) => value === 0));
  const b = toFloat32(loraB);
  for (const [k, row] of [[0, 10], [1, 11]] as const) {
    let dot = 0;
    for (let i = 0; i < 12; i++) dot += b[i * 2 + k]! * right.values[row * 12 + i]!;
    assert.ok(Math.abs(Math.abs(dot) - 1) < 1e-6, String(dot));
  }
});

test("createAdapter() refuses what PEFT refuses of a kind, by field, and sizes that are none", async () => {
  const weightOf = () => noise([2, 2], 1);
  const one = (module: BaseModule, more: Partial<CreateAdapterOptions>) => {
    const target = module.kind === "experts" ? { targetParameters: ["down_proj"] } : { targetModules: [module.name] };
    return createAdapter({ modules: [module], ...target, r: 2, ...more });
  };
  const refusals: [BaseModule, Partial<CreateAdapterOptions>, field: string][] = [
    [TABLE, { loraBias: true }, "loraBias"],
    [TABLE, { init: "loftq" }, "init"],
    [TABLE, { init: "eva", inputsOf: weightOf }, "init"],
    [TABLE, { useDora: true }, "useDora"],
    [CONV[0]!, { init: "pissa", weightOf }, "init"],
    [GROUPED, { r: 3 }, "r"],
    [EXPERTS, { useDora: true, weightOf }, "useDora"],
    [EXPERTS, { loraBias: true }, "loraBias"],
    [EXPERTS, { loraDropout: 0.1 }, "loraDropout"],
    [EXPERTS, { fanInFanOut: true }, "fanInFanOut"],
    [EXPERTS, { init: "orthogonal" }, "init"],
    [EXPERTS, { targetParameters: ["up_proj"] }, "targetParameters"],
  ];
  for (const [module, more, field] of refusals) {
    await assert.rejects(one(module, more), { name: "MismatchError", field }, `${module.name} ${field}`);
  }
  await assert.rejects(one(TABLE, { useDora: true, weightOf }), { name: "MismatchError", expected: [40, 12] });
  const wrong: BaseModule[] = [
    { ...TABLE, inFeatures: 0 },
    { ...TABLE, outFeatures: NaN },
    { ...GROUPED, kernel: [] },
    { ...GROUPED, groups: 4 },
    { ...EXPERTS, experts: 0.5 },
    { ...EXPERTS, parameter: null },
  ];
  for (const module of wrong) await assert.rejects(one(module, {}), RangeError, JSON.stringify(module));
});
