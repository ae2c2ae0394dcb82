import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";
import { forEachBackend } from "./backends.ts";
import { expectedTensors, fixture, fixtureFolder, MODEL, readTensors, relativeError } from "./adapter_fixtures.ts";
import { adapterOf, assertClose, at, merge, noise, plus, product, rescaled, transposed } from "./merge_support.ts";

const SPECIAL = [
  ["bertcls-plain", "bertcls"],
  ["llama-dora", "llama"],
  ["llama-dora-rslora", "llama"],
  ["llama-embedding", "llama"],
  ["gpt2-lora-bias", "gpt2"],
  ["bert-bias-lora-only", "bert"],
  ["llama-modules-to-save", "llama"],
  ["llama-new-tokens", "llama"],
  ["conv-plain", "conv"],
  ["conv-dora", "conv"],
  ["moe", "mixtral"],
] as const;

forEachBackend("mergeCheckpoint() merges every kind as PEFT does, and leaves all else bit for bit", async (backend) => {
  for (const [name, base] of SPECIAL) {
    const original = await readTensors(fixture(`base/${base}/${MODEL}`));
    const want = await expectedTensors(name, "merged.");
    const adapter = await loadAdapter(fixtureFolder(`${name}/adapter`));
    const sink = memorySink();
    const report = await mergeCheckpoint(fixtureFolder(`base/${base}`), [{ adapter }], sink, { backend });
    assert.deepEqual([[...report.merged].sort(), report.report], [[...want.keys()].sort(), []], name);
    const got = await readTensors(sink.files.get(MODEL)!);
    assert.deepEqual([...got.keys()], [...original.keys()], name);
    for (const [tensor, stored] of got) {
      if (want.has(tensor)) assertClose(stored, want.get(tensor)!.values, `${name}: ${tensor}`);
      else assert.deepEqual(stored, original.get(tensor), `${name}: ${tensor}`);
    }
  }
});

const [W, A, B, M] = [noise([6, 4], 1), noise([2, 4], 2), noise([6, 2], 3), noise([6], 4)];
const dora = (seed = 0, config = {}) =>
  adapterOf({
    "q.lora_A.weight": noise([2, 4], 2 + seed),
    "q.lora_B.weight": noise([6, 2], 3 + seed),
    "q.lora_magnitude_vector": noise([6], 4 + seed),
  }, { use_dora: true, ...config });

test("DoRA has its norms per output feature, also where the weight is stored (in, out)", async () => {
  const sum = plus(at(W), product(A, B, 1.5));
  const want = rescaled(sum, sum, at(M));
  assertClose((await merge({ "q.weight": W }, [await dora()])).tensors.get("q.weight"), want);
  const stored = { ...W, shape: [4, 6], bytes: new Uint8Array(Float32Array.from(transposed(at(W), 4)).buffer) };
  assertClose((await merge({ "q.weight": stored }, [await dora()])).tensors.get("q.weight"), transposed(want, 4));
});

test("two DoRA adapters apply one after the other, each with norms of the unmerged weight", async () => {
  const [one, two] = [await dora(), await dora(20)];
  const [d1, d2] = [product(A, B, 1.5), product(noise([2, 4], 22), noise([6, 2], 23), 1.5)];
  const first = rescaled(plus(at(W), d1), plus(at(W), d1), at(M));
  const want = rescaled(plus(first, d2), plus(at(W), d2), at(noise([6], 24)));
  assertClose((await merge({ "q.weight": W }, [one, two])).tensors.get("q.weight"), want);
});

test("the weight of a DoRA adapter scales s inside its norms; at 0 it is m / ‖W‖ ∘ W", async () => {
  for (const weight of [0.5, 0, -1]) {
    const sum = plus(at(W), product(A, B, 1.5 * weight));
    const { tensors } = await merge({ "q.weight": W }, [{ adapter: await dora(), weight }]);
    assertClose(tensors.get("q.weight"), rescaled(sum, sum, at(M)), String(weight));
  }
});

test("DoRA on an embedding has one norm per column over the whole vocabulary, whatever the pieces", async () => {
  for (const [vocab, dim] of [[7, 3], [70_001, 31]] as const) {
    const [table, a, b] = [noise([vocab, dim], 1), noise([2, vocab], 2), noise([dim, 2], 3)];
    const m = noise([dim], 4);
    const adapter = await adapterOf({
      "embed.lora_embedding_A": a,
      "embed.lora_embedding_B": b,
      "embed.lora_magnitude_vector": m,
    }, { use_dora: true });
    const sum = plus(transposed(at(table), dim), product(a, b, 1.5));
    const norms = Float64Array.from({ length: dim }, (_, i) => {
      return Math.sqrt(sum.subarray(i * vocab, (i + 1) * vocab).reduce((total, value) => total + value * value, 0));
    });
    const magnitudes = at(m);
    const scaled = sum.map((value, i) => {
      const column = Math.floor(i / vocab);
      return magnitudes[column]! / norms[column]! * value;
    });
    const want = transposed(scaled, vocab);
    assertClose((await merge({ "embed.weight": table }, [adapter])).tensors.get("embed.weight"), want, `${vocab}`);
  }
});

test("token rows are in the table before anything is added to it", async () => {
  const [table, rows, a, b] = [noise([5, 4], 1), noise([2, 4], 5), noise([2, 5], 2), noise([4, 2], 3)];
  const adapter = await adapterOf({
    "embed.lora_embedding_A": a,
    "embed.lora_embedding_B": b,
    "embed.token_adapter.trainable_tokens_delta": rows,
  }, { trainable_token_indices: { embed: [4, 1] } });
  const base = at(table);
  base.set(at(rows).subarray(0, 4), 16);
  base.set(at(rows).subarray(4), 4);
  const want = plus(base, transposed(product(a, b, 1.5), 5));
  assertClose((await merge({ "embed.weight": table }, [adapter])).tensors.get("embed.weight"), want);
});

test("token rows outside of the table, and two adapters with one row, are refused", async () => {
  const rows = (index: number, seed: number) =>
    adapterOf({
      "embed.token_adapter.trainable_tokens_delta": noise([1, 4], seed),
      "q.lora_A.weight": A,
      "q.lora_B.weight": B,
    }, { trainable_token_indices: [index] });
  const base = { "embed.weight": noise([5, 4], 1), "q.weight": W };
  await assert.rejects(merge(base, [await rows(5, 1)]), { name: "MismatchError", found: 5, expected: 5 });
  await assert.rejects(merge(base, [await rows(2, 1), await rows(2, 2)]), {
    name: "MismatchError",
    tensor: "embed.weight",
  });
  await merge(base, [await rows(2, 1), await rows(2, 1)]);
  await merge(base, [await rows(2, 1), await rows(3, 2)]);
});

test("a bias of B is added with s; a base without a bias gets one, and is told so", async () => {
  const [bias, own] = [noise([6], 7), noise([6], 8)];
  const adapter = await adapterOf({ "q.lora_A.weight": A, "q.lora_B.weight": B, "q.lora_B.bias": bias }, {
    lora_bias: true,
  });
  const scaled = at(bias).map((value) => 0.75 * value);
  const weighted = { adapter, weight: 0.5 };
  const { tensors } = await merge({ "q.weight": W, "q.bias": own }, [weighted]);
  assertClose(tensors.get("q.bias"), plus(at(own), scaled));
  const without = await merge({ "q.weight": W }, [weighted]);
  assertClose(without.tensors.get("q.bias"), scaled);
  assert.deepEqual(without.report.report.map(({ module }) => module), ["q.bias"]);
  assert.deepEqual([...without.report.merged].sort(), ["q.bias", "q.weight"]);
});

test("DoRA over another adapter's bias of B is refused: its gain would act on that bias", async () => {
  const biased = await adapterOf({ "q.lora_A.weight": A, "q.lora_B.weight": B, "q.lora_B.bias": noise([6], 7) }, {
    lora_bias: true,
  });
  const dora = await adapterOf({
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
    "q.lora_magnitude_vector": noise([6], 9),
  }, { use_dora: true });
  const base = { "q.weight": W, "q.bias": noise([6], 8) };
  await assert.rejects(merge(base, [biased, dora]), { name: "MismatchError", tensor: "q", field: "lora_bias" });
  await merge(base, [dora, biased]);
});

test("a head that the base lacks is added; a table of another size changes vocab_size", async () => {
  const [head, table] = [noise([3, 4], 6), noise([9, 4], 7)];
  const adapter = await adapterOf({
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
    "score.weight": head,
    "model.embed_tokens.weight": table,
  }, { modules_to_save: ["score"] });
  const base = { "q.weight": W, "model.embed_tokens.weight": noise([8, 4], 1) };
  const { tensors, config, report } = await merge(base, [adapter], {
    config: { vocab_size: 8, tie_word_embeddings: false },
  });
  assert.deepEqual([tensors.get("score.weight"), tensors.get("model.embed_tokens.weight")], [head, table]);
  assert.deepEqual([config.vocab_size, report.report.length], [9, 2]);
  const other = await adapterOf({
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
    "q.base_layer.weight": noise([5, 4], 1),
  });
  await assert.rejects(merge(base, [other]), { name: "MismatchError", tensor: "q.weight" });
});

test("full tensors keep the base's dtype, and integers are integers", async () => {
  const count: StoredTensor = { dtype: "I64", shape: [], bytes: new Uint8Array(8).fill(3) };
  const adapter = await adapterOf({
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
    "norm.weight": noise([4], 1),
    "norm.num_batches_tracked": count,
  }, { modules_to_save: ["norm"] });
  const half: StoredTensor = { dtype: "BF16", shape: [4], bytes: new Uint8Array(8) };
  const base = {
    "q.weight": W,
    "norm.weight": half,
    "norm.num_batches_tracked": { ...count, bytes: new Uint8Array(8) },
  };
  const { tensors } = await merge(base, [adapter]);
  assert.deepEqual(tensors.get("norm.num_batches_tracked"), count);
  assert.equal(tensors.get("norm.weight")!.dtype, "BF16");
  assert.ok(relativeError(toFloat32(tensors.get("norm.weight")!), at(noise([4], 1))) < 2 ** -8);
});

test("two adapters may replace a tensor by the same values only; a weight scales factors only, and is reported", async () => {
  const saved = (seed: number) =>
    adapterOf({ "q.lora_A.weight": A, "q.lora_B.weight": B, "norm.weight": noise([4], seed) }, {
      modules_to_save: ["norm"],
    });
  const base = { "q.weight": W, "norm.weight": noise([4], 9) };
  await assert.rejects(merge(base, [await saved(1), await saved(2)]), { name: "MismatchError", tensor: "norm.weight" });
  const { tensors, report } = await merge(base, [await saved(1), { adapter: await saved(1), weight: 0.5 }]);
  assert.deepEqual(tensors.get("norm.weight"), noise([4], 1));
  assert.equal(report.report.length, 1);
});

test("a convolution of any kernel is merged; one with groups is refused, or written without them", async () => {
  const [groups, rank, inner, out, kernel] = [2, 4, 6, 8, 3];
  const weight = noise([out, inner / groups, kernel], 1);
  const [a, b] = [noise([rank, inner, kernel], 2), noise([out, rank / groups, 1], 3)];
  const adapter = await adapterOf({ "conv.lora_A.weight": a, "conv.lora_B.weight": b }, { r: rank, lora_alpha: 6 });
  await assert.rejects(merge({ "conv.weight": weight }, [adapter]), { code: "unsupported", field: "groups", found: 2 });
  const { tensors, report } = await merge({ "conv.weight": weight }, [adapter], { expandGroups: true });
  const want = new Float64Array(out * inner * kernel);
  const [w, x, y] = [at(weight), at(a), at(b)];
  for (let o = 0; o < out; o++) {
    const group = Math.floor(o / (out / groups));
    for (let i = 0; i < inner; i++) {
      for (let k = 0; k < kernel; k++) {
        const own = i - group * inner / groups;
        let value = own >= 0 && own < inner / groups ? w[(o * inner / groups + own) * kernel + k]! : 0;
        for (let j = 0; j < rank / groups; j++) {
          value += 1.5 * y[o * rank / groups + j]! * x[((group * rank / groups + j) * inner + i) * kernel + k]!;
        }
        want[(o * inner + i) * kernel + k] = value;
      }
    }
  }
  assert.deepEqual(tensors.get("conv.weight")!.shape, [out, inner, kernel]);
  assertClose(tensors.get("conv.weight"), want);
  assert.equal(report.report.length, 1);
});

test("the projections of an attention in one module are merged into its parameters, the output's twice as PEFT does", async () => {
  const [a, b, oa, ob] = [noise([2, 4], 1), noise([12, 2], 2), noise([2, 4], 3), noise([4, 2], 4)];
  const adapter = await adapterOf({
    "attn.lora_A.weight": a,
    "attn.lora_B.weight": b,
    "attn.base_layer.out_proj.lora_A.weight": oa,
    "attn.base_layer.out_proj.lora_B.weight": ob,
  });
  const base = { "attn.in_proj_weight": noise([12, 4], 5), "attn.out_proj.weight": noise([4, 4], 6) };
  const { tensors } = await merge(base, [adapter]);
  assertClose(tensors.get("attn.in_proj_weight"), plus(at(base["attn.in_proj_weight"]), product(a, b, 1.5)));
  assertClose(tensors.get("attn.out_proj.weight"), plus(at(base["attn.out_proj.weight"]), product(oa, ob, 3)));
});

test("of the biases of B of an attention in one module, PEFT adds that of the output once and the others never", async () => {
  const parts = {
    "attn.lora_A.weight": noise([2, 4], 1),
    "attn.lora_B.weight": noise([12, 2], 2),
    "attn.lora_B.bias": noise([12], 3),
    "attn.base_layer.out_proj.lora_A.weight": noise([2, 4], 4),
    "attn.base_layer.out_proj.lora_B.weight": noise([4, 2], 5),
    "attn.base_layer.out_proj.lora_B.bias": noise([4], 6),
  };
  const base = {
    "attn.in_proj_weight": noise([12, 4], 7),
    "attn.in_proj_bias": noise([12], 8),
    "attn.out_proj.weight": noise([4, 4], 9),
    "attn.out_proj.bias": noise([4], 10),
  };
  const { tensors, report } = await merge(base, [await adapterOf(parts, { lora_bias: true })]);
  assertClose(tensors.get("attn.in_proj_bias"), at(base["attn.in_proj_bias"]));
  assertClose(tensors.get("attn.out_proj.bias"), plus(at(base["attn.out_proj.bias"]), at(noise([4], 6)), 1.5));
  assert.match(report.report.map(({ what }) => what).join(), /its bias of B has no effect/);
});

test("adapters that no weight can hold are refused by the field that says so", async () => {
  const parts = { "q.lora_A.weight": A, "q.lora_B.weight": B };
  const cases = [
    [parts, { alora_invocation_tokens: [1] }, "alora_invocation_tokens"],
    [parts, { init_lora_weights: "corda" }, "init_lora_weights"],
    [parts, { init_lora_weights: "pissa_niter_4" }, "init_lora_weights"],
    [parts, { init_lora_weights: "loftq" }, "init_lora_weights"],
  ] as const;
  for (const [tensors, config, field] of cases) {
    await assert.rejects(
      merge({ "q.weight": W }, [await adapterOf(tensors, config)]),
      { code: "unsupported", field },
      field,
    );
  }
});
