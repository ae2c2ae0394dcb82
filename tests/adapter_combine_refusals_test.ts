import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { combineAdapters, type CombineOptions } from "../src/adapter/combine.ts";
import { LimitError, MismatchError, NumericError } from "../src/errors.ts";
import { makeAdapter } from "./adapter_combine_support.ts";

const Q = "layers.0.q_proj";

test("combineAdapters() refuses what it would get wrong, by name", async () => {
  const a = await makeAdapter(20, { [Q]: { rank: 2 } });
  const combine = (other: Adapter, options?: CombineOptions, weight = 1) =>
    combineAdapters([{ adapter: a }, { adapter: other, weight }], options);
  const ranks = await makeAdapter(21, { [Q]: { rank: 3 } });
  await assert.rejects(
    combine(ranks, { method: "linear" }),
    /"layers\.0\.q_proj" of ranks 2, 3 by "linear": expected one/,
  );
  const shapes = await makeAdapter(22, { [Q]: { rank: 2, inFeatures: 13 } });
  await assert.rejects(combine(shapes), /of shape \[9, 13\].*expected \[9, 12\]/);
  await assert.rejects(
    combine(await makeAdapter(23, { [Q]: { rank: 2 } }, { fan_in_fan_out: true })),
    /fan_in_fan_out/,
  );
  const wide = await makeAdapter(24, { [Q]: { rank: 255 } });
  await assert.rejects(combine(wide), (error) => error instanceof LimitError && error.value === 257);
  assert.equal((await combine(wide, { limits: { rank: 300 } })).modules.get(Q)!.rank, 257);
  for (const weight of [NaN, Infinity]) await assert.rejects(combine(a, {}, weight), NumericError);
  await assert.rejects(combine(a, { dtype: "F16" }, 1e30), NumericError);
  await assert.rejects(combineAdapters([]), /Cannot combine 0 adapters/);
  await assert.rejects(combineAdapters([{ adapter: {} as Adapter }]), TypeError);
  const large = await makeAdapter(25, { [Q]: { rank: 1, inFeatures: 600, outFeatures: 600 } });
  await assert.rejects(
    combineAdapters([{ adapter: large }], { method: "ties_svd", density: 1 }),
    /\[600, 600\].*at most 512/,
  );
});

test("combineAdapters() refuses options that are out of range or do nothing", async () => {
  const adapter = await makeAdapter(26, { [Q]: { rank: 2 } });
  const cases: readonly (readonly [CombineOptions, RegExp])[] = [
    [{ method: "exact" as "cat" }, /method exact/],
    [{ rank: 2 }, /rank 2: expected none/],
    [{ method: "ties", density: 0.5, energy: 0.5 }, /energy 0\.5: expected none/],
    [{ method: "svd", rank: 0 }, /rank 0: expected an integer from 1/],
    [{ method: "svd", rank: 2, energy: 0.5 }, /not both/],
    [{ method: "svd", energy: 0 }, /energy 0: expected above 0/],
    [{ method: "svd", energy: NaN }, /energy NaN/],
    [{ method: "ties" }, /density undefined: expected above 0 up to 1/],
    [{ method: "dare_ties_svd", density: 1.5 }, /density 1\.5/],
    [{ method: "linear", density: 0.5 }, /density 0\.5: expected none/],
    [{ method: "ties", density: 0.5, majoritySign: "most" as "total" }, /majoritySign most/],
    [{ method: "dare_linear", density: 0.5, seed: 0.5 }, /seed 0\.5/],
  ];
  for (const [options, message] of cases) {
    await assert.rejects(combineAdapters([{ adapter }], options), (error) => {
      assert.ok(error instanceof RangeError && message.test(error.message), String(error));
      return true;
    });
  }
});

test("combineAdapters() refuses adapters that are more than plain LoRA, by field, part or kind", async () => {
  const plain = await makeAdapter(27, { [Q]: { rank: 2 } });
  const altered = (field: string, value: unknown) =>
    new Adapter({
      ...plain,
      config: { ...plain.config, raw: new Map([...plain.config.raw, [field, value as string]]) },
    });
  const fields = {
    use_dora: true,
    lora_bias: true,
    bias: "all",
    kasa_config: new Map([["k", 1]]),
    modules_to_save: ["x"],
  };
  const more = { alora_invocation_tokens: [1], target_parameters: ["w"], init_lora_weights: "pissa_niter_4" };
  for (const [field, value] of Object.entries({ ...fields, ...more })) {
    await assert.rejects(combineAdapters([{ adapter: plain }, { adapter: altered(field, value) }]), (error) => {
      assert.ok(error instanceof MismatchError && error.field === field, String(error));
      return true;
    });
  }
  const module = plain.modules.get(Q)!;
  const changes = [[{ magnitude: module.loraA }, /magnitude of module/], [
    { kind: "embedding" },
    /embedding of module/,
  ]] as const;
  for (const [part, message] of changes) {
    const modules = new Map([[Q, { ...module, ...part } as typeof module]]);
    await assert.rejects(combineAdapters([{ adapter: new Adapter({ ...plain, modules }) }]), message);
  }
  const parts = Object.assign(new Adapter(plain), { tokenRows: new Map([["embed_tokens", module.loraA]]) });
  await assert.rejects(combineAdapters([{ adapter: parts }]), /with tokenRows/);
  for (const [field, value] of [["modules_to_save", []], ["bias", "none"], ["init_lora_weights", "eva"]] as const) {
    await combineAdapters([{ adapter: altered(field, value) }]);
  }
});

test("combineAdapters() stops at an abort", async () => {
  const adapter = await makeAdapter(28, { [Q]: { rank: 2 } });
  const reason = new Error("enough");
  await assert.rejects(combineAdapters([{ adapter }], { signal: AbortSignal.abort(reason) }), reason);
});
