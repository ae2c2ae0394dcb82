/** Names that PEFT gives tensors and parameters in special cases. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { filled, smallAdapter } from "./adapter_fixtures.ts";

const PREFIX = "base_model.model.";

const small = (tensors: Readonly<Record<string, StoredTensor>>, config: Readonly<Record<string, unknown>>) =>
  loadAdapter(smallAdapter({ tensors, config }));

test("where PEFT has renamed single experts, the parameters of fused ones go by their bare names", async () => {
  const experts = `${PREFIX}mlp.experts`;
  const tensors = {
    [`${experts}.base_layer.lora_A.weight`]: filled([8, 3]),
    [`${experts}.base_layer.lora_B.weight`]: filled([10, 8]),
    [`${experts}.lora_A.weight`]: filled([4, 5]),
    [`${experts}.lora_B.weight`]: filled([3, 4]),
    [`${PREFIX}mlp.gate.lora_A.weight`]: filled([2, 3]),
    [`${PREFIX}mlp.gate.lora_B.weight`]: filled([2, 2]),
  };
  const config = {
    target_parameters: ["gate.weight", "down_proj", "gate_up_proj"],
    rank_pattern: { ".*\\.gate_up_proj": 4 },
    alpha_pattern: { ".*\\.gate_up_proj": 8 },
  };
  const { modules } = await small(tensors, config);
  const found = ["gate", "experts.gate_up_proj", "experts.down_proj"].map((name) => modules.get(`mlp.${name}`)!);
  assert.deepEqual(found.map(({ kind, rank, scaling }) => [kind, rank, scaling]), [
    ["linear", 2, 2],
    ["experts", 4, 2],
    ["experts", 2, 2],
  ]);
  assert.equal(modules.get("layers.0.q_proj")!.kind, "linear");
});

test("biases that PEFT saves twice, with a module in full and with all biases, are one", async () => {
  const twice = {
    [`${PREFIX}classifier.weight`]: filled([3, 4]),
    [`${PREFIX}classifier.bias`]: filled([3], 2),
    [`${PREFIX}classifier.modules_to_save.bias`]: filled([3], 2),
    [`${PREFIX}block.fc.bias`]: filled([5], 1),
    [`${PREFIX}block.modules_to_save.fc.bias`]: filled([5], 1),
  };
  const { replacements } = await small(twice, { bias: "all", modules_to_save: ["classifier", "block"] });
  assert.deepEqual([...replacements.keys()], ["block.fc.bias", "classifier.bias", "classifier.weight"]);
});
