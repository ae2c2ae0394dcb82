import assert from "node:assert/strict";
import { test } from "node:test";
import { parseLoraConfig } from "../src/adapter/lora_config.ts";
import { FormatError, LimitError, NumericError } from "../src/errors.ts";
import { JsonNumber } from "../src/formats/json.ts";
import { fixture } from "./adapter_fixtures.ts";

const parse = (fields: Readonly<Record<string, unknown>>) =>
  parseLoraConfig(JSON.stringify({ peft_type: "LORA", ...fields }));

test("parseLoraConfig() reads the fields that decide what is computed", () => {
  const config = parseLoraConfig(new TextDecoder().decode(fixture("llama-patterns/adapter/adapter_config.json")));
  assert.deepEqual(config.rankPattern, new Map([["layers\\.1\\.mlp\\.down_proj", 7], ["q_proj", 2]]));
  assert.deepEqual(config.alphaPattern, new Map([["layers.0.self_attn.q_proj", 5], ["v_proj", 3]]));
  assert.deepEqual([config.r, config.loraAlpha, config.useRslora, config.fanInFanOut], [4, 8, false, false]);
  assert.equal(config.targetModules, ".*\\.(q_proj|v_proj|gate_proj|down_proj)");
  assert.deepEqual([config.taskType, config.baseModel, config.loraDropout], ["CAUSAL_LM", "../../base/llama", 0]);
  assert.equal(config.raw.size, 41);
});

test("parseLoraConfig() gives absent fields PEFT's defaults", () => {
  const config = parse({});
  assert.deepEqual([config.r, config.loraAlpha, config.targetModules, config.taskType], [8, 8, null, null]);
  assert.deepEqual([config.rankPattern.size, config.layersToTransform, config.excludeModules], [0, null, null]);
  assert.deepEqual(parse({ layers_to_transform: 3, target_modules: ["q"] }).layersToTransform, [3]);
});

test("parseLoraConfig() keeps unknown keys, and numbers as they are written", () => {
  const config = parseLoraConfig('{"peft_type": "LORA", "lora_dropout": 0.10, "my_key": {"deep": [1e-05]}}');
  assert.equal(config.loraDropout, 0.1);
  assert.deepEqual(config.raw.get("my_key"), new Map([["deep", [new JsonNumber("1e-05")]]]));
});

test("parseLoraConfig() refuses ranks that are none, naming the field", () => {
  for (const r of [0, -1, 2.5, "8", true, [8], {}]) {
    assert.throws(() => parse({ r }), (error) => error instanceof FormatError && error.field === "r", String(r));
  }
  for (const r of [257, 2 ** 31, 1e300]) {
    assert.throws(() => parse({ r }), (error) => {
      return error instanceof LimitError && error.field === "r" && error.limit === 256 && error.value === r;
    }, String(r));
  }
  const rank = { field: "rank_pattern" };
  assert.throws(() => parse({ rank_pattern: { q: 0 } }), { name: "FormatError", ...rank });
  assert.throws(() => parse({ rank_pattern: { q: 1e9 } }), { name: "LimitError", ...rank });
  assert.throws(() => parse({ rank_pattern: ["q"] }), { name: "FormatError", ...rank });
  assert.throws(() => parseLoraConfig('{"peft_type": "LORA", "r": 8.0}'), { name: "FormatError", field: "r" });
});

test("parseLoraConfig() takes ranks up to the cap that a caller sets", () => {
  const text = '{"peft_type": "LORA", "r": 512}';
  assert.equal(parseLoraConfig(text, { limits: { rank: 512 } }).r, 512);
  assert.throws(() => parseLoraConfig(text, { limits: { rank: 511 } }), LimitError);
});

test("parseLoraConfig() refuses alphas that are no finite numbers, naming field or place", () => {
  for (const alpha of ["16", [16], true]) {
    assert.throws(() => parse({ lora_alpha: alpha }), { name: "FormatError", field: "lora_alpha" });
  }
  for (const text of ["1e39", "-1e39", "3.5e38"]) {
    const config = `{"peft_type": "LORA", "lora_alpha": ${text}}`;
    assert.throws(() => parseLoraConfig(config), (e) => e instanceof NumericError && e.field === "lora_alpha", text);
  }
  for (const text of ["NaN", "Infinity", "1e400"]) {
    const config = `{"peft_type": "LORA", "lora_alpha": ${text}}`;
    assert.throws(() => parseLoraConfig(config), /FormatError: .*line 1, column 37/, text);
  }
});

test("parseLoraConfig() refuses fields of the wrong type, naming the field", () => {
  const wrong: Readonly<Record<string, readonly unknown[]>> = {
    use_rslora: ["true", 1],
    fan_in_fan_out: ["false"],
    target_modules: [7, { q: 1 }, [["q"]], [null]],
    exclude_modules: [7],
    layers_to_transform: ["0", [0.5], [-1], ["0"]],
    task_type: [1],
    lora_dropout: ["0.1", -0.5, 1.5],
    alpha_pattern: [[1], { q: "8" }],
    init_lora_weights: ["xavier", 1],
    bias: [true, "some"],
  };
  for (const [field, values] of Object.entries(wrong)) {
    for (const value of values) {
      const fields = { target_modules: ["q"], [field]: value };
      assert.throws(() => parse(fields), { name: "FormatError", field }, `${field} = ${JSON.stringify(value)}`);
    }
  }
});

test("parseLoraConfig() refuses lists above the cap at once", () => {
  const many = Array.from({ length: 4097 }, (_, i) => `m${i}`);
  const map = Object.fromEntries(many.map((name) => [name, 4]));
  for (const fields of [{ target_modules: many }, { rank_pattern: map }, { alpha_pattern: map }]) {
    assert.throws(() => parse(fields), (error) => error instanceof LimitError && error.value === 4097);
  }
});

test("parseLoraConfig() refuses combinations that PEFT refuses", () => {
  assert.throws(() => parse({ target_modules: ".*q", layers_to_transform: [1] }), { field: "layers_to_transform" });
  assert.throws(() => parse({ target_modules: ["q"], layers_pattern: "h" }), { field: "layers_pattern" });
});

test("parseLoraConfig() refuses whatever it does not compute, naming field and remedy", () => {
  assert.throws(() => parse({ arrow_config: { top_k: 3 } }), (error) => {
    assert.ok(error instanceof FormatError && error.code === "unsupported" && error.field === "arrow_config");
    return error.message.includes("not supported yet, ");
  });
});

test("parseLoraConfig() reads what makes an adapter more than factors of linear layers", () => {
  const plain = parse({});
  assert.deepEqual([plain.useDora, plain.loraBias, plain.bias, plain.modulesToSave], [false, false, "none", null]);
  assert.deepEqual([plain.trainableTokens, plain.targetParameters, plain.invocationTokens], [null, null, null]);
  assert.deepEqual([plain.layerReplication, plain.init, plain.baseChange, plain.poolSize], [null, true, null, null]);
  assert.deepEqual(parse({ bias: "lora_only" }).bias, "lora_only");
  assert.deepEqual(parse({ trainable_token_indices: [5, 3] }).trainableTokens, new Map([[null, [5, 3]]]));
  const named = parse({ trainable_token_indices: { embed_tokens: [1], lm_head: [2] } }).trainableTokens;
  assert.deepEqual(named, new Map([["embed_tokens", [1]], ["lm_head", [2]]]));
  assert.deepEqual(parse({ layer_replication: [[0, 4], [2, 5]] }).layerReplication, [[0, 4], [2, 5]]);
  assert.deepEqual(parse({ use_qalora: true }).poolSize, 16);
  const blocks = { nblocks: 2, target_modules_bd_a: ["o_proj"], target_modules_bd_b: null, match_strict: true };
  assert.deepEqual(parse({ use_bdlora: blocks }).blockDiagonal, { blocks: 2, a: ["o_proj"], b: [] });
  const changes = { pissa: "pissa", PiSSA: "pissa", pissa_niter_16: "pissa_niter", olora: "olora", corda: "corda" };
  for (const [init, change] of Object.entries({ ...changes, lora_ga: "lora_ga", loftq: "loftq", mica: null })) {
    assert.equal(parse({ init_lora_weights: init }).baseChange, change, init);
  }
  assert.equal(parse({ kasa_config: {} }).baseChange, "kasa");
});

test("parseLoraConfig() refuses values that these fields cannot have, and pairs that exclude each other", () => {
  const wrong: Readonly<Record<string, readonly unknown[]>> = {
    bias: ["every"],
    use_dora: ["yes"],
    modules_to_save: ["norm", [7]],
    trainable_token_indices: [["a"], [-1], { embed: [0.5] }],
    target_parameters: ["experts.down_proj"],
    alora_invocation_tokens: [["a"]],
    layer_replication: [[[4, 4]], [[1]], [[0, 1, 2]], 3],
    use_bdlora: [true],
    init_lora_weights: ["pissa_niter_", "kaiming"],
  };
  for (const [field, values] of Object.entries(wrong)) {
    for (const value of values) {
      assert.throws(
        () => parse({ [field]: value }),
        { name: "FormatError", field },
        `${field} ${JSON.stringify(value)}`,
      );
    }
  }
  assert.throws(() => parse({ use_dora: true, lora_bias: true }), { field: "lora_bias" });
  assert.throws(() => parse({ use_dora: true, kasa_config: {} }), { field: "kasa_config" });
  assert.throws(() => parse({ use_bdlora: { nblocks: 2 }, alora_invocation_tokens: [1] }), {
    field: "alora_invocation_tokens",
  });
});

test("parseLoraConfig() accepts what changes training only", () => {
  for (const init of [true, false, null, "gaussian", "eva", "orthogonal", "mica"]) parse({ init_lora_weights: init });
  parse({ velora_config: {}, monteclora_config: {}, megatron_config: {}, megatron_core: "x", lora_dropout: 0.5 });
  parse({ modules_to_save: [], target_parameters: [], trainable_token_indices: null, bias: "none", use_dora: false });
  parse({ trainable_token_indices: [], alora_invocation_tokens: [], layer_replication: [] });
});

test("parseLoraConfig() refuses files that are no LoRA config", () => {
  for (
    const text of ["", "{", "[]", "null", '"LORA"', "{}", '{"r": 8}', '{"peft_type": null}', '{"peft_type": "LOHA"}']
  ) {
    assert.throws(() => parseLoraConfig(text), FormatError, text);
  }
  assert.throws(() => parseLoraConfig('{"peft_type": "LORA", "r": 4, "r": 8}'), FormatError);
  assert.throws(() => parseLoraConfig(`{"peft_type": "LORA", "x": ${"[".repeat(17)}${"]".repeat(17)}}`), LimitError);
  assert.throws(() => parse({ peft_type: "IA3" }), { field: "peft_type", found: "IA3" });
});
