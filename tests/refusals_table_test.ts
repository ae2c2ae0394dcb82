/** Every refusal names the field or the tensor, and says what was wanted: one row for each. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { combineAdapters, resizeAdapter } from "../src/adapter/combine.ts";
import { compareAdapters } from "../src/adapter/compare.ts";
import { createAdapter } from "../src/adapter/create.ts";
import { DIALECTS, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { parseLoraConfig } from "../src/adapter/lora_config.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { loadEncoder, loadModel } from "../src/models/mod.ts";
import { fixture, fixtureFiles, fixtureFolder, text } from "./adapter_fixtures.ts";
import { adapterOf, merge, noise } from "./merge_support.ts";

type Placed = Error & {
  readonly code?: string;
  readonly file?: string;
  readonly tensor?: string;
  readonly field?: string;
};

const CONFIG = "adapter_config.json";
const isPlaced = (error: Placed, place: string) => error.field === place || error.tensor === place;

/** Fails unless a refusal names its place in a field and in the message, and says what to do. */
function checkRefusal(error: Placed, place: string, label: string): void {
  assert.ok(typeof error.code === "string", `${label}: ${error.stack}`);
  assert.ok(isPlaced(error, place), `${label}: field ${error.field}, tensor ${error.tensor}: ${error.message}`);
  assert.ok(error.message.includes(place.replace(/^.*\s/, "")), `${label}: ${error.message}`);
  assert.match(error.message, /expected |not supported yet, /, label);
}

async function refused(run: () => unknown, place: string, label: string): Promise<void> {
  await assert.rejects(async () => await run(), (error: Placed) => {
    checkRefusal(error, place, label);
    return true;
  }, label);
}

/** A value of a type that no field of its kind takes. */
const WRONG: readonly (readonly [field: string, ...values: unknown[]])[] = [
  ["peft_type", null, "ADALORA", 3],
  ["r", 0, -1, 1.5, "8", null, true, 2 ** 40],
  ["lora_alpha", "16", [1], true],
  ["use_rslora", 1, "true"],
  ["rank_pattern", [1], { q: 0 }, { q: "8" }, { q: 1.5 }],
  ["alpha_pattern", 3, { q: null }, { q: "8" }],
  ["target_modules", 3, { q: 1 }, ["q", 1]],
  ["exclude_modules", 3, ["q", null]],
  ["layers_to_transform", "1", [-1], [0.5], { a: 1 }],
  ["layers_pattern", 5, [1]],
  ["fan_in_fan_out", "no", 0],
  ["lora_dropout", -0.1, 1.5, "0"],
  ["bias", "some", true],
  ["lora_bias", "all", 1],
  ["modules_to_save", "head", 4, [1]],
  ["trainable_token_indices", "1", [-1], { e: "1" }, { e: [0.5] }],
  ["ensure_weight_tying", 1],
  ["init_lora_weights", "kaiming", 1, []],
  ["use_dora", 1, "yes"],
  ["target_parameters", "experts", [1]],
  ["alora_invocation_tokens", [-1], ["a"], "text"],
  ["layer_replication", 3, [[1]], [[3, 1]], [["a", 2]]],
  ["use_qalora", 1],
  ["use_bdlora", true, [1]],
  ["arrow_config", { top_k: 3 }, true],
  ["task_type", 3, ["CAUSAL_LM"]],
  ["base_model_name_or_path", 3],
];

test("a field of an adapter's config that is wrong is refused by its name", () => {
  for (const [field, ...values] of WRONG) {
    for (const value of values) {
      const text = JSON.stringify({ peft_type: "LORA", r: 4, lora_alpha: 8, [field]: value });
      const label = `${field} = ${JSON.stringify(value)}`;
      // r: null is absent, as PEFT's default says.
      if (field === "r" && value === null) continue;
      assert.throws(() => parseLoraConfig(text), (error: Placed) => {
        assert.equal(error.file, CONFIG, label);
        checkRefusal(error, field, label);
        return true;
      }, label);
    }
  }
});

test("a number that no float holds is refused by the name of its field, in configs of adapters and models", async () => {
  const numbers = ["1e400", "-1e400"];
  const withNumber = (config: object, path: readonly string[], number: string) => {
    const [outer = "", inner] = path;
    const whole = { ...config, [outer]: inner === undefined ? "@" : { [inner]: "@" } };
    return JSON.stringify(whole).replace('"@"', number);
  };
  for (const path of [["r"], ["lora_alpha"], ["lora_dropout"], ["rank_pattern", "q"], ["eva_config", "rho"]]) {
    for (const number of numbers) {
      const config = withNumber({ peft_type: "LORA" }, path, number);
      await refused(() => parseLoraConfig(config), path.join("."), `${path} ${number}`);
    }
  }
  for (const base of ["llama", "gpt2", "bert"]) {
    const files = fixtureFiles(`base/${base}`);
    const config = JSON.parse(new TextDecoder().decode(fixture(`base/${base}/config.json`)));
    const paths = Object.keys(config).filter((key) => typeof config[key] === "number").map((key) => [key]);
    for (const path of [...paths, ["rope_scaling", "factor"]]) {
      const folder = memoryFolder(new Map(files).set("config.json", text(withNumber(config, path, "1e400"))));
      const load = () => base === "bert" ? loadEncoder(folder) : loadModel(folder);
      await refused(load, path.join("."), `${base} ${path}`);
    }
  }
});

/** Adapters that are more than sums of B A over the published base, and what names that. */
async function richAdapters(): Promise<(readonly [place: string, Adapter])[]> {
  const [a, b] = [noise([2, 9], 1), noise([12, 2], 2)];
  const linear = { "q.lora_A.weight": a, "q.lora_B.weight": b };
  const conv = { "c.lora_A.weight": noise([2, 4, 3], 3), "c.lora_B.weight": noise([6, 1, 1], 4) };
  const experts = { "mlp.experts.lora_A.weight": noise([8, 5], 5), "mlp.experts.lora_B.weight": noise([7, 8], 6) };
  const token = { ...linear, "e.token_adapter.trainable_tokens_delta": noise([2, 4], 7) };
  return [
    ["use_dora", await adapterOf({ ...linear, "q.lora_magnitude_vector": noise([12], 8) }, { use_dora: true })],
    ["init_lora_weights", await adapterOf(linear, { init_lora_weights: "corda" })],
    ["kasa_config", await adapterOf({ ...linear, "q.lora_diag": noise([2], 9) }, { kasa_config: {} })],
    ["alora_invocation_tokens", await adapterOf(linear, { alora_invocation_tokens: [3] })],
    ["layer_replication", await adapterOf(linear, { layer_replication: [[0, 1]] })],
    ["ensure_weight_tying", await adapterOf(linear, { ensure_weight_tying: true })],
    ["trainable_token_indices", await adapterOf(token, { trainable_token_indices: { e: [1, 2] } })],
    ["modules_to_save", await adapterOf({ ...linear, "norm.weight": noise([4], 9) }, { modules_to_save: ["norm"] })],
    ['groups of module "c"', await adapterOf(conv)],
    [
      'fused experts of module "mlp.experts.down_proj"',
      await adapterOf(experts, {
        target_parameters: ["mlp.experts.down_proj"],
      }),
    ],
  ];
}

test("what cannot be combined, resized, compared or written as a dialect is named with its field or tensor", async () => {
  const plain = await adapterOf({ "q.lora_A.weight": noise([2, 9], 1), "q.lora_B.weight": noise([12, 2], 2) });
  for (const [place, adapter] of await richAdapters()) {
    await refused(() => combineAdapters([{ adapter: plain }, { adapter }]), place, `combine ${place}`);
    await refused(() => resizeAdapter(adapter, { rank: 1 }), place, `resize ${place}`);
    await refused(() => compareAdapters(adapter, plain), place, `compare ${place}`);
    for (const to of DIALECTS.filter((dialect) => dialect !== "peft")) {
      const write = () => writeAdapter(adapter, to, memorySink(), { architecture: "llama" } as object);
      await write().then(() => undefined, (error: Placed) => {
        assert.ok(typeof error.code === "string", `${to} ${place}: ${error.stack}`);
        assert.ok(error.tensor ?? error.field, `${to} ${place}: ${error.message}`);
        assert.match(error.message, /expected |is wanted/, `${to} ${place}`);
      });
    }
  }
});

test("what cannot be merged or run is named with its field or tensor, and a way out", async () => {
  const base = { "q.weight": noise([12, 9], 4) };
  const [a, b] = [noise([2, 9], 1), noise([12, 2], 2)];
  const linear = { "q.lora_A.weight": a, "q.lora_B.weight": b };
  const inits = ["pissa_niter_4", "corda", "lora_ga", "loftq"];
  for (const init of inits) {
    const adapter = await adapterOf(linear, { init_lora_weights: init });
    await refused(() => merge(base, [adapter]), "init_lora_weights", init);
  }
  const alora = await adapterOf(linear, { alora_invocation_tokens: [3] });
  await refused(() => merge(base, [alora]), "alora_invocation_tokens", "merge alora");
  const elsewhere = await adapterOf({ "k.lora_A.weight": a, "k.lora_B.weight": b });
  await assert.rejects(merge(base, [elsewhere]), { name: "MismatchError", tensor: "k" });
  const partial = await adapterOf(linear, { target_modules: ["q", "v"] });
  const both = { ...base, "v.weight": noise([12, 9], 5) };
  await assert.rejects(merge(both, [partial]), (error: Placed) => {
    assert.deepEqual([error.field, error.tensor], ["target_modules", "v"]);
    return /strict: false/.test(error.message);
  });
  const grouped = await adapterOf({ "c.lora_A.weight": noise([2, 4, 3], 3), "c.lora_B.weight": noise([6, 1, 1], 4) });
  await assert.rejects(merge({ "c.weight": noise([6, 2, 3], 5) }, [grouped]), (error: Placed) => {
    return error.field === "groups" && /--expand-groups/.test(error.message);
  });
  const model = await loadModel(fixtureFolder("base/llama"));
  const llama = await loadAdapter(fixtureFolder("llama-plain/adapter"));
  const config = { ...llama.config, init: "corda", baseChange: "corda" } as const;
  const changed = new Adapter({ ...llama, config, baseChange: "corda" });
  await refused(() => model.loadAdapter("a", changed), "init_lora_weights", "run corda");
  await assert.rejects(model.loadAdapter("a", elsewhere), { name: "MismatchError", tensor: "k" });
  model.dispose();
  const modules = [{ name: "q", inFeatures: 9, outFeatures: 12 }];
  const create = (more: object) => createAdapter({ modules, targetModules: ["q"], ...more });
  await refused(() => create({ targetModules: ["k"] }), "targetModules", "create");
  await refused(() => create({ useDora: true }), "useDora", "create without weights");
  await refused(() => create({ init: "pissa" }), "init", "create pissa without weights");
  await refused(() => create({ init: "orthogonal", r: 3 }), "r", "create orthogonal of an odd rank");
});
