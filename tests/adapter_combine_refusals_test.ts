import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { combineAdapters, type CombineOptions, resizeAdapter } from "../src/adapter/combine.ts";
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
    [{ method: "sum" as "cat" }, /method sum/],
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

test("combineAdapters() refuses adapters that are more than sums, by field, part or kind", async () => {
  const plain = await makeAdapter(27, { [Q]: { rank: 2 } });
  const module = plain.modules.get(Q)!;
  const { config } = plain;
  const asConfig = (fields: Partial<typeof config>) => new Adapter({ ...plain, config: { ...config, ...fields } });
  const tensor = module.loraA;
  const altered: readonly (readonly [field: string, Adapter])[] = [
    ["use_dora", asConfig({ useDora: true })],
    ["layer_replication", asConfig({ layerReplication: [[0, 1]] })],
    ["ensure_weight_tying", asConfig({ ensureWeightTying: true })],
    ["init_lora_weights", new Adapter({ ...plain, baseChange: "pissa_niter" })],
    ["alora_invocation_tokens", new Adapter({ ...plain, invocationTokens: [1] })],
    ["modules_to_save", new Adapter({ ...plain, replacements: new Map([["norm.weight", tensor]]) })],
    ["trainable_token_indices", new Adapter({ ...plain, tokenRows: new Map([["e", { indices: [1], rows: tensor }]]) })],
  ];
  for (const [field, adapter] of altered) {
    await assert.rejects(combineAdapters([{ adapter: plain }, { adapter }]), (error) => {
      assert.ok(error instanceof MismatchError && error.field === field, String(error));
      // Only a changed base is what conversion undoes.
      assert.equal(/lora convert --plain/.test(error.message), field === "init_lora_weights");
      return true;
    });
    await assert.rejects(resizeAdapter(adapter, { rank: 1 }), /^MismatchError: Cannot resize "/);
  }
  const changes = [
    [{ magnitude: tensor }, /magnitude of module/],
    [{ diagonal: tensor }, /diagonal of module/],
    [{ kind: "experts", experts: 1 }, /fused experts of module/],
    [{ kind: "conv", rank: 4 }, /groups of module/],
  ] as const;
  for (const [part, message] of changes) {
    const modules = new Map([[Q, { ...module, ...part }]]);
    await assert.rejects(combineAdapters([{ adapter: new Adapter({ ...plain, modules }) }]), message);
  }
});

test("combineAdapters() stops at an abort", async () => {
  const adapter = await makeAdapter(28, { [Q]: { rank: 2 } });
  const reason = new Error("enough");
  await assert.rejects(combineAdapters([{ adapter }], { signal: AbortSignal.abort(reason) }), reason);
});
