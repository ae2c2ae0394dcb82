import assert from "node:assert/strict";
import { test } from "node:test";
import { createAdapter } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { FormatError, LimitError, MismatchError, NumericError } from "../src/errors.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";

const modules = [
  { name: "layers.0.q_proj", inFeatures: 100, outFeatures: 60 },
  { name: "layers.0.v_proj", inFeatures: 100, outFeatures: 20 },
  { name: "layers.1.q_proj", inFeatures: 100, outFeatures: 60 },
  { name: "lm_head", inFeatures: 100, outFeatures: 300 },
];
const base = { modules, targetModules: ["q_proj", "v_proj"] };

test("createAdapter() makes A uniform in ±1/√in and B zero", async () => {
  const adapter = await createAdapter({ ...base, r: 64, loraAlpha: 16, seed: 7 });
  assert.deepEqual([...adapter.modules.keys()], ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj"]);
  const { loraA, loraB, ...v } = adapter.modules.get("layers.0.v_proj")!;
  assert.deepEqual([v.rank, v.alpha, v.scaling, v.inFeatures, v.outFeatures], [64, 16, 0.25, 100, 20]);
  assert.deepEqual([loraA.shape, loraB.shape], [[64, 100], [20, 64]]);
  assert.ok(loraB.bytes.every((byte) => byte === 0));
  const a = toFloat32(loraA);
  const moment = (power: number) => a.reduce((sum, value) => sum + (10 * value) ** power, 0) / a.length;
  assert.ok(a.every((value) => Math.abs(value) <= 0.1));
  // Mean and variance of 6400 uniform values, within five standard errors.
  assert.ok(Math.abs(moment(1)) < 5 * Math.sqrt(1 / 3 / 6400), `mean ${moment(1)}`);
  assert.ok(Math.abs(moment(2) - 1 / 3) < 5 * Math.sqrt(4 / 45 / 6400), `variance ${moment(2)}`);
});

test('createAdapter() makes A normal with variance 1/r² for "gaussian"', async () => {
  const adapter = await createAdapter({ ...base, r: 64, init: "gaussian" });
  const a = toFloat32(adapter.modules.get("layers.0.q_proj")!.loraA);
  const moment = (power: number) => a.reduce((sum, value) => sum + (64 * value) ** power, 0) / a.length;
  assert.ok(Math.abs(moment(1)) < 5 * Math.sqrt(1 / 6400));
  assert.ok(Math.abs(moment(2) - 1) < 5 * Math.sqrt(2 / 6400));
  assert.ok(Math.abs(moment(4) - 3) < 5 * Math.sqrt(96 / 6400));
  assert.equal(adapter.config.raw.get("init_lora_weights"), "gaussian");
});

test("createAdapter() gives the same bits for the same seed, whatever other modules there are", async () => {
  const bytes = async (options: Partial<Parameters<typeof createAdapter>[0]>) =>
    (await createAdapter({ ...base, ...options })).modules.get("layers.1.q_proj")!.loraA.bytes;
  const first = await bytes({});
  assert.deepEqual(await bytes({ targetModules: ["q_proj"], modules: modules.slice(2) }), first);
  assert.notDeepEqual(await bytes({ seed: 1 }), first);
  assert.notDeepEqual(await bytes({ seed: 2 ** 32 }), first);
  const { sha256 } = await createAdapter(base);
  assert.equal(sha256, "8e9aa8b7c0dbdf157000c4ce2e9b49c8b57e43859905f21e4bc6d353f49fcef4");
  const adapter = await createAdapter(base);
  const [a, b] = ["layers.0.q_proj", "layers.1.q_proj"].map((name) => adapter.modules.get(name)!.loraA.bytes);
  assert.notDeepEqual(a, b);
});

test("an adapter that was created is the same after saving and loading", async () => {
  const adapter = await createAdapter({
    ...base,
    targetModules: "all-linear",
    r: 4,
    loraAlpha: 12,
    useRslora: true,
    rankPattern: { v_proj: 9 },
    alphaPattern: { "layers.1.*": 3 },
    taskType: "CAUSAL_LM",
    baseModel: "tiny",
    loraDropout: 0.05,
  });
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  const loaded = await loadAdapter(sink.files);
  assert.deepEqual(loaded.modules, adapter.modules);
  assert.deepEqual([loaded.sha256, loaded.id, loaded.bytes], [adapter.sha256, adapter.id, adapter.bytes]);
  assert.deepEqual(loaded.config.targetModules, ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj"]);
  const scales = [...loaded.modules.values()].map(({ rank, scaling }) => [rank, scaling]);
  assert.deepEqual(scales, [[4, 6], [9, 4], [4, 1.5]]);
  assert.deepEqual(loaded.report.map(({ what }) => what), Array(3).fill("B is zero"));
});

test("createAdapter() refuses targets that the base lacks, and fields that are wrong", async () => {
  await assert.rejects(createAdapter({ ...base, targetModules: ["k_proj"] }), MismatchError);
  await assert.rejects(createAdapter({ ...base, targetModules: "(?=q)" }), FormatError);
  await assert.rejects(createAdapter({ ...base, r: 0 }), FormatError);
  await assert.rejects(createAdapter({ ...base, r: NaN }), FormatError);
  await assert.rejects(createAdapter({ ...base, r: 2 ** 31 }), LimitError);
  await assert.rejects(createAdapter({ ...base, loraAlpha: Infinity }), NumericError);
  await assert.rejects(createAdapter({ ...base, seed: 0.5 }), RangeError);
});

test("createAdapter() refuses weights that are not finite or not whole, names twice, and sizes without memory", async () => {
  const modules = [{ name: "a", inFeatures: 4, outFeatures: 2 }];
  const weight = (value: number) => new Uint8Array(new Float32Array(8).fill(1).with(5, value).buffer);
  const create = (bytes: Uint8Array, options: object) =>
    createAdapter({
      modules,
      targetModules: ["a"],
      r: 1,
      weightOf: () => ({ dtype: "F32", shape: [2, 4], bytes }),
      ...options,
    });
  for (const options of [{ init: "pissa" }, { useDora: true }] as const) {
    assert.equal((await create(weight(2), options)).modules.size, 1);
    for (const value of [NaN, Infinity]) {
      await assert.rejects(create(weight(value), options), { name: "NumericError", tensor: "a" });
    }
    const short = { name: "ShapeError", tensor: "a", found: 31, expected: 32 };
    await assert.rejects(create(weight(2).subarray(1), options), short);
  }
  const inputsOf = () => ({ dtype: "F32", shape: [2, 4], bytes: weight(NaN) }) as const;
  await assert.rejects(create(weight(2), { init: "eva", inputsOf }), { name: "NumericError", tensor: "a" });
  const twins = [...modules, { name: "a", inFeatures: 6, outFeatures: 2 }];
  await assert.rejects(create(weight(2), { modules: twins }), { name: "MismatchError", tensor: "a", field: "modules" });
  const huge = [{ name: "a", inFeatures: 2 ** 45, outFeatures: 2 }];
  await assert.rejects(create(weight(2), { modules: huge }), { name: "OutOfMemoryError", tensor: "a" });
});

test("the first key of a pattern that matches counts, in the order given, in the file too", async () => {
  const rankPattern = { "layers.0.*": 3, ".*": 2 };
  const alphaPattern = { v_proj: 5, ".*_proj": 7 };
  const adapter = await createAdapter({ ...base, rankPattern, alphaPattern });
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  for (const { modules } of [adapter, await loadAdapter(sink.files)]) {
    assert.deepEqual([...modules.values()].map(({ rank, alpha }) => [rank, alpha]), [[3, 7], [3, 5], [2, 7]]);
  }
  const plain = await createAdapter({ ...base, rankPattern: { q_proj: 3, v_proj: 2 } });
  assert.deepEqual([...plain.config.rankPattern], [["q_proj", 3], ["v_proj", 2]]);
});

test("a head that PEFT saves in full is no target, and the report says that PEFT wants it", async () => {
  const modules = [{ name: "query", inFeatures: 4, outFeatures: 4 }, {
    name: "classifier",
    inFeatures: 4,
    outFeatures: 2,
  }];
  const targetModules = ["query", "classifier"];
  const adapter = await createAdapter({ modules, targetModules, taskType: "SEQ_CLS" });
  assert.deepEqual([...adapter.modules.keys()], ["query"]);
  assert.match(adapter.report[0]!.what, /"classifier" or "score" in full for task_type "SEQ_CLS"/);
  const other = await createAdapter({ modules, targetModules, taskType: "FEATURE_EXTRACTION" });
  assert.deepEqual([other.modules.size, other.report], [2, []]);
});

test("createAdapter() speaks of its options, by their names", async () => {
  const wrong: [option: string, value: unknown, message: RegExp][] = [
    ["r", 0, /with r 0: expected a whole number from 1$/],
    ["r", 300, /with r 300: expected at most 256$/],
    ["loraAlpha", Infinity, /with loraAlpha Infinity: expected a finite 32-bit float$/],
    ["useRslora", "yes", /with useRslora "yes": expected true or false$/],
    ["rankPattern", { a: 0.5 }, /with rankPattern 0\.5: /],
    ["targetModules", [undefined], /with targetModules null: expected names only$/],
    ["targetModules", undefined, /without targetModules: expected names, a pattern or "all-linear"$/],
    ["layersPattern", ["h"], /expected null, where layersToTransform names no layer$/],
    ["loraDropout", 2, /with loraDropout 2: expected a number from 0 to 1$/],
    ["baseModel", 4, /with baseModel 4: expected a string or null$/],
    ["init", "no", /with init "no": expected true, false, "gaussian"/],
    ["useDora", () => true, /with useDora .*: expected true or false$/],
  ];
  for (const [option, value, message] of wrong) {
    const call = createAdapter({ ...base, [option]: value });
    await assert.rejects(call, (error: Error & { field?: string; file?: string }) => {
      assert.match(error.message, /^Cannot create an adapter with/);
      assert.match(error.message, message);
      assert.deepEqual([error.field, error.file], [option, undefined]);
      return true;
    });
  }
});

test("createAdapter() refuses options that are none, such as PEFT's names, and reports targets that are none", async () => {
  for (const option of ["lora_alpha", "initLoraWeights", "modulesToSave", "bias"]) {
    const refusal = {
      name: "TypeError",
      message: new RegExp(`an option "${option}": expected some of .*loraAlpha, .*init,`),
    };
    await assert.rejects(createAdapter({ ...base, [option]: 1 }), refusal);
    await createAdapter({ ...base, [option]: undefined });
  }
  const { modules: adapted, report } = await createAdapter({ ...base, targetModules: ["q_proj", "v_prj"] });
  const why = 'the base has no layer of that name, or it is excluded; the nearest name is "v_proj"';
  assert.deepEqual(report, [{ module: "adapter_config.json", what: '"v_prj" of targetModules adapts nothing', why }]);
  assert.deepEqual([...adapted.keys()], ["layers.0.q_proj", "layers.1.q_proj"]);
  assert.deepEqual((await createAdapter({ ...base, targetModules: "all-linear" })).report, []);
  const slip = { name: "MismatchError", message: /names of its modules; the nearest is "q_proj"$/ };
  await assert.rejects(createAdapter({ ...base, targetModules: ["q_prj"] }), slip);
  await assert.rejects(createAdapter({ ...base, targetModules: ["head"] }), { message: /names of its modules$/ });
  const none = { targetModules: ["q_proj"], excludeModules: ["q_proj"] };
  await assert.rejects(createAdapter({ ...base, ...none }), { message: /names of its modules$/ });
  const name = "mlp.experts.down_proj";
  const experts = [{
    name,
    kind: "experts" as const,
    parameter: "down_proj",
    experts: 2,
    inFeatures: 4,
    outFeatures: 4,
  }];
  const asModule = createAdapter({ modules: experts, targetModules: ["down_proj"] });
  await assert.rejects(asModule, { message: /names of its modules; targetParameters names its experts$/ });
});

test("createAdapter() refuses options of another type, and names the module whose factors are too large", async () => {
  const wrong: [option: string, value: unknown, error: string][] = [
    ["seed", "1", "TypeError"],
    ["name", 5, "TypeError"],
    ["weightOf", {}, "TypeError"],
    ["inputsOf", 3, "TypeError"],
    ["onBase", "x", "TypeError"],
    ["loftqBits", "4", "TypeError"],
    ["loftqBits", 3, "RangeError"],
    ["evaRho", "2", "TypeError"],
    ["evaRho", NaN, "RangeError"],
    ["loftqIterations", 0, "RangeError"],
    ["modules", [null], "TypeError"],
    ["modules", {}, "TypeError"],
  ];
  for (const [option, value, name] of wrong) {
    await assert.rejects(createAdapter({ ...base, [option]: value }), { name }, option);
  }
  const vast = [{ name: "c", kind: "conv", inFeatures: 4, outFeatures: 2, kernel: [2 ** 30, 2 ** 30] }] as const;
  const call = createAdapter({ modules: vast, targetModules: ["c"] });
  await assert.rejects(call, { name: "ShapeError", tensor: "c", message: /^Cannot create "c" of its sizes: / });
});
