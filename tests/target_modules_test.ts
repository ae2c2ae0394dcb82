import assert from "node:assert/strict";
import { test } from "node:test";
import { parseLoraConfig } from "../src/adapter/lora_config.ts";
import { compilePatternMap, listTargets } from "../src/adapter/target_modules.ts";
import { FormatError, LimitError } from "../src/errors.ts";
import { fixture, fixtureFiles, readTensors } from "./adapter_fixtures.ts";

const targets = (fields: Readonly<Record<string, unknown>>, modules: readonly string[]) =>
  listTargets(parseLoraConfig(JSON.stringify({ peft_type: "LORA", ...fields })), modules);

const LINEAR = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"];
const MODEL = [...[0, 1, 2].flatMap((layer) => LINEAR.map((name) => `model.layers.${layer}.${name}`)), "lm_head"];

test("listTargets() names the modules that PEFT put into each fixture", async () => {
  const base = await readTensors(fixture("base/llama/model.safetensors"));
  const modules = [...base].filter(([, { shape }]) => shape.length === 2).map(([name]) => name.replace(".weight", ""));
  for (
    const name of ["llama-plain", "llama-patterns", "llama-exclude", "llama-layers-to-transform", "llama-all-linear"]
  ) {
    const files = fixtureFiles(`${name}/adapter`);
    const tensors = await readTensors(files.get("adapter_model.safetensors")!);
    const adapted = new Set([...tensors.keys()].map((key) => key.slice("base_model.model.".length).split(".lora_")[0]));
    const config = parseLoraConfig(new TextDecoder().decode(files.get("adapter_config.json")!));
    assert.deepEqual(new Set(listTargets(config, modules).modules), adapted, name);
  }
});

test("an entry of a list is a path or its tail after a dot, and every entry has its count", () => {
  const { modules, counts } = targets({ target_modules: ["q_proj", "mlp.up_proj", "lm_head", "roj", "layers"] }, MODEL);
  assert.equal(modules.length, 7);
  assert.deepEqual(
    counts,
    new Map([["q_proj", 3], ["mlp.up_proj", 3], ["lm_head", 1], ["roj", 0], ["layers", 0]]),
  );
});

test("a pattern must match the whole path", () => {
  assert.equal(targets({ target_modules: ".*\\.(q|v)_proj" }, MODEL).modules.length, 6);
  assert.equal(targets({ target_modules: "q_proj" }, MODEL).modules.length, 0);
  assert.equal(targets({ target_modules: "lm_head" }, MODEL).modules.length, 1);
});

test("exclusion wins, by name, by tail and by pattern", () => {
  const rest = (names: unknown) => targets({ target_modules: ["q_proj"], exclude_modules: names }, MODEL).modules;
  assert.deepEqual(rest(["layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]), [MODEL[6]]);
  assert.deepEqual(rest(".*layers\\.(0|2).*"), [MODEL[3]]);
  assert.equal(rest("q_proj").length, 3);
  assert.equal(rest([]).length, 3);
});

test("layers_to_transform keeps the named layers, and entries that are whole paths", () => {
  const names = ["q_proj", "model.layers.0.mlp.up_proj"];
  const modules = targets({ target_modules: names, layers_to_transform: [2] }, MODEL).modules;
  assert.deepEqual(modules, ["model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj"]);
});

test("the layer index is the first number after two names, or after a name in layers_pattern", () => {
  const modules = ["layers.1.q", "h.1.q", "a.layers.1.q", "a.0.h.1.q", "a.h.1.2.q", "a.h.1"];
  const only = (fields: Readonly<Record<string, unknown>>) =>
    targets({ target_modules: ["q", "1"], layers_to_transform: 1, ...fields }, modules).modules;
  assert.deepEqual(only({}), ["a.layers.1.q", "a.0.h.1.q", "a.h.1.2.q"]);
  assert.deepEqual(only({ layers_pattern: "layers" }), ["layers.1.q", "a.layers.1.q"]);
  assert.deepEqual(only({ layers_pattern: ["x", "h"] }), ["h.1.q", "a.0.h.1.q", "a.h.1.2.q"]);
});

test('"all-linear" leaves out the head', () => {
  assert.equal(targets({ target_modules: "all-linear" }, MODEL).modules.length, 9);
  const classifier = ["bert.pooler", "classifier"];
  assert.deepEqual(targets({ target_modules: "ALL-LINEAR", task_type: "SEQ_CLS" }, classifier).modules, [
    "bert.pooler",
  ]);
  assert.deepEqual(targets({ target_modules: "all-linear" }, classifier).modules, classifier);
});

test("listTargets() refuses null, unsupported constructs and paths that are too long", () => {
  assert.throws(() => targets({}, MODEL), FormatError);
  assert.throws(() => targets({ target_modules: "(?!lm_head).*" }, MODEL), { field: "target_modules" });
  assert.throws(() => targets({ target_modules: ".*q" }, ["a".repeat(513)]), LimitError);
});

test("the first key in sorted order that matches gives the value, and disagreement is told", () => {
  const value = compilePatternMap(new Map([["q_proj", 3], ["layers.0.*", 4], ["v_proj|k_proj", 5]]), 8, {});
  assert.deepEqual(value("layers.1.q_proj"), { value: 3, candidates: [3] });
  assert.deepEqual(value("layers.0.up"), { value: 4, candidates: [4] });
  assert.deepEqual(value("m.layers.0.q_proj"), { value: 4, candidates: [4, 3], conflict: ["layers.0.*", "q_proj"] });
  assert.deepEqual(value("layers.1.k_proj").value, 5);
  assert.deepEqual(value("layers.1.xq_proj"), { value: 8, candidates: [8] });
});

test("what is saved in full is no target, with all inside it", () => {
  const fields = { target_modules: ".*(q_proj|v_proj|lm_head)", modules_to_save: ["lm_head", "1.self_attn"] };
  assert.deepEqual(
    targets(fields, MODEL).modules,
    MODEL.filter((path) => /layers\.[02].*[qv]_proj/.test(path)),
  );
});
