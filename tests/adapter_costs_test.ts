import assert from "node:assert/strict";
import { test } from "node:test";
import { adapterCosts, moduleCosts } from "../src/adapter/costs.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { fixtureFolder } from "./adapter_fixtures.ts";

/** Trained values of `count` square layers of a width. */
function parameters(count: number, width: number, rank: number): number {
  return count * moduleCosts({ kind: "linear", rank, inFeatures: width, outFeatures: width }).parameters;
}

test("moduleCosts() gives the parameter counts of the LoRA paper", () => {
  // GPT-3: width 12288, 96 layers, q and v.
  assert.deepEqual([1, 4, 8].map((rank) => parameters(2 * 96, 12288, rank)), [4_718_592, 18_874_368, 37_748_736]);
  // Table 5: one kind of layer at rank 8, two at 4, four at 2.
  assert.deepEqual(
    [[1, 8], [2, 4], [4, 2]].map(([kinds, rank]) => parameters(96 * kinds!, 12288, rank!)),
    Array(3).fill(18_874_368),
  );
  // RoBERTa base and large at rank 8, DeBERTa XXL at 16.
  assert.deepEqual(
    [parameters(2 * 12, 768, 8), parameters(2 * 24, 1024, 8), parameters(2 * 48, 1536, 16)],
    [294_912, 786_432, 4_718_592],
  );
  // GPT-2 medium and large at rank 4; the paper prints 0.35 and 0.77 million, which its own formula does not give.
  assert.deepEqual([parameters(2 * 24, 1024, 4), parameters(2 * 36, 1280, 4)], [393_216, 737_280]);
});

test("moduleCosts() counts operations: 2 in out for the base, 2 r (in + out) for the branch, twice that backward", () => {
  const costs = moduleCosts({ kind: "linear", rank: 32, inFeatures: 4096, outFeatures: 4096 });
  assert.deepEqual([costs.baseFlops, costs.branchFlops], [2 * 4096 ** 2, 2 * 32 * 8192]);
  assert.deepEqual([costs.baseBackwardFlops, costs.branchBackwardFlops], [2 * 4096 ** 2, 4 * 32 * 8192]);
  assert.equal((100 * costs.branchFlops / costs.baseFlops).toFixed(1), "1.6");
  assert.equal(costs.optimizerValues, 2 * 32 * 8192);
});

test("adapterCosts() counts convolutions per place, tables per row, and all that is stored in full", async () => {
  const load = (name: string) => loadAdapter(fixtureFolder(`${name}/adapter`));
  const { modules } = await load("conv-plain");
  const conv = moduleCosts(modules.get("conv2")!);
  assert.deepEqual([conv.baseFlops, conv.branchFlops], [2 * 4 * 15 * 6, 2 * (4 * 4 * 15 + 6 * 4)]);
  const embedding = moduleCosts((await load("llama-embedding")).modules.get("model.embed_tokens")!);
  const { rank } = (await load("llama-embedding")).modules.get("model.embed_tokens")!;
  assert.deepEqual([embedding.baseFlops, embedding.branchFlops], [0, 2 * rank * 48]);
  const adapter = await load("llama-modules-to-save");
  const own = [...adapter.modules.values()].reduce((sum, module) => sum + moduleCosts(module).parameters, 0);
  assert.equal(adapterCosts(adapter).parameters, own + 5 * 48);
  const experts = moduleCosts((await load("moe")).modules.get("model.layers.0.mlp.experts.down_proj")!);
  assert.equal(experts.baseFlops, 4 * 2 * 40 * 32);
});
