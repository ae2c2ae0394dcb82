import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { mergeCheckpoint, type MergeOptions, type MergeReport } from "../src/checkpoint/merge.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { forEachBackend } from "./backends.ts";
import {
  expectedTensors,
  fixture,
  fixtureFolder,
  INDEX,
  MODEL,
  readTensors,
  relativeError,
  text,
} from "./adapter_fixtures.ts";

const PREFIX = "base_model.model.";

/** Values without a pattern, the same in every run. */
function noise(shape: readonly number[], seed: number): StoredTensor {
  const size = shape.reduce((product, length) => product * length, 1);
  const values = Float32Array.from({ length: size }, (_, i) => Math.sin(12.9898 * (i + 1) + 78.233 * seed));
  return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
}

const at = (tensor: StoredTensor) => Float64Array.from(toFloat32(tensor));

interface Merged {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly config: Record<string, unknown>;
  readonly report: MergeReport;
}

/** A PEFT folder of these tensors, r 2 and alpha 3 unless a test says otherwise. */
function adapterOf(
  tensors: Readonly<Record<string, StoredTensor>>,
  config: Readonly<Record<string, unknown>> = {},
): Promise<Adapter> {
  const named = Object.entries(tensors).map(([name, tensor]) => [PREFIX + name, tensor] as const);
  const files = new Map([
    ["adapter_config.json", text({ peft_type: "LORA", r: 2, lora_alpha: 3, ...config })],
    ["adapter_model.safetensors", encodeSafetensors(new Map(named))],
  ]);
  return loadAdapter(files);
}

async function merge(
  base: Readonly<Record<string, StoredTensor>>,
  adapters: readonly (Adapter | { readonly adapter: Adapter; readonly weight: number })[],
  { config = {}, ...options }: MergeOptions & { readonly config?: Readonly<Record<string, unknown>> } = {},
): Promise<Merged> {
  const files = new Map([
    [MODEL, encodeSafetensors(new Map(Object.entries(base)))],
    ["config.json", text(JSON.stringify(config, null, 2))],
  ]);
  const sink = memorySink();
  const weighted = adapters.map((one) => "adapter" in one ? one : { adapter: one });
  const report = await mergeCheckpoint(memoryFolder(files), weighted, sink, options);
  return {
    tensors: await readTensors(sink.files.get(MODEL)!),
    config: JSON.parse(new TextDecoder().decode(sink.files.get("config.json"))),
    report,
  };
}

/** s B A, (out, in) in float64. */
function product(a: StoredTensor, b: StoredTensor, scaling: number): Float64Array {
  const [rank, out] = [a.shape[0]!, b.shape[0]!];
  const [x, y] = [at(a), at(b)];
  const columns = x.length / rank;
  return Float64Array.from({ length: out * columns }, (_, i) => {
    const [o, c] = [Math.floor(i / columns), i % columns];
    let sum = 0;
    for (let k = 0; k < rank; k++) sum += y[o * rank + k]! * x[k * columns + c]!;
    return scaling * sum;
  });
}

function transposed(values: Float64Array, columns: number): Float64Array {
  const rows = values.length / columns;
  return Float64Array.from(values, (_, i) => values[(i % rows) * columns + Math.floor(i / rows)]!);
}

const plus = (x: Float64Array, y: Float64Array, factor = 1) => x.map((value, i) => value + factor * y[i]!);

/** m / ‖of‖ ∘ what, per row. */
function rescaled(what: Float64Array, of: Float64Array, magnitude: Float64Array): Float64Array {
  const columns = what.length / magnitude.length;
  return what.map((value, i) => {
    const row = Math.floor(i / columns);
    const norm = Math.hypot(...of.subarray(row * columns, (row + 1) * columns));
    return magnitude[row]! / norm * value;
  });
}

function assertClose(got: StoredTensor | undefined, want: Float64Array, what = ""): void {
  assert.ok(got, `${what}: no such tensor`);
  const error = relativeError(toFloat32(got), want);
  assert.ok(error <= 1e-6, `${what} differs by ${error}`);
}

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

/** A (r E, in) and B (out, r E) of E experts, and Δ of each in float64. */
function experts(count: number, [out, inner]: readonly [number, number], seed: number) {
  const [a, b] = [noise([2 * count, inner], seed), noise([out, 2 * count], seed + 1)];
  const deltas = Array.from({ length: count }, (_, e) => {
    const values = new Float64Array(out * inner);
    for (let i = 0; i < values.length; i++) {
      const [o, c] = [Math.floor(i / inner), i % inner];
      for (let j = 0; j < 2; j++) {
        values[i]! += 1.5 * at(b)[o * 2 * count + j * count + e]! * at(a)[(2 * e + j) * inner + c]!;
      }
    }
    return values;
  });
  return { a, b, deltas };
}

const concatenated = (parts: readonly Float64Array[]) => Float64Array.from(parts.flatMap((part) => [...part]));

test("experts that are stored (E, in, out) get Δᵀ; where the file tells no parameter, the shape does", async () => {
  const { a, b, deltas } = experts(3, [6, 4], 2);
  const weight = noise([3, 4, 6], 1);
  const want = plus(at(weight), concatenated(deltas.map((delta) => transposed(delta, 4))));
  const known = await adapterOf({ "mlp.experts.lora_A.weight": a, "mlp.experts.lora_B.weight": b }, {
    target_parameters: ["experts.gate_up_proj"],
  });
  const name = "mlp.experts.gate_up_proj";
  assertClose((await merge({ [name]: weight }, [known])).tensors.get(name), want);
  const two = await adapterOf({
    "mlp.experts.base_layer.lora_A.weight": a,
    "mlp.experts.base_layer.lora_B.weight": b,
    "mlp.experts.lora_A.weight": noise([6, 5], 5),
    "mlp.experts.lora_B.weight": noise([7, 6], 6),
  }, { target_parameters: ["experts.one", "experts.two"] });
  const base = { "mlp.experts.two": weight, "mlp.experts.one": noise([3, 7, 5], 3) };
  assertClose((await merge(base, [two])).tensors.get("mlp.experts.two"), want);
});

test("factors of single experts go into fused ones, and fused ones into single experts", async () => {
  const part = (seed: number, [out, inner]: readonly [number, number]) => ({
    a: noise([2, inner], seed),
    b: noise([out, 2], seed + 50),
  });
  const [gate, up, down] = [part(1, [3, 4]), part(2, [3, 4]), part(3, [4, 3])];
  const path = "layers.0.block_sparse_moe.experts.1";
  const adapter = await adapterOf({
    [`${path}.w1.lora_A.weight`]: gate.a,
    [`${path}.w1.lora_B.weight`]: gate.b,
    [`${path}.w3.lora_A.weight`]: up.a,
    [`${path}.w3.lora_B.weight`]: up.b,
    [`${path}.w2.lora_A.weight`]: down.a,
    [`${path}.w2.lora_B.weight`]: down.b,
  });
  const fused = "layers.0.mlp.experts";
  const base = { [`${fused}.gate_up_proj`]: noise([2, 6, 4], 8), [`${fused}.down_proj`]: noise([2, 4, 3], 9) };
  const { tensors, report } = await merge(base, [adapter]);
  const none = new Float64Array(24);
  const both = concatenated([none, product(gate.a, gate.b, 1.5), product(up.a, up.b, 1.5)]);
  assertClose(tensors.get(`${fused}.gate_up_proj`), plus(at(base[`${fused}.gate_up_proj`]!), both));
  const one = concatenated([new Float64Array(12), product(down.a, down.b, 1.5)]);
  assertClose(tensors.get(`${fused}.down_proj`), plus(at(base[`${fused}.down_proj`]!), one));
  assert.equal(report.report.length, 2);
  const { a, b, deltas } = experts(2, [6, 4], 4);
  const whole = await adapterOf({ [`${fused}.lora_A.weight`]: a, [`${fused}.lora_B.weight`]: b }, {
    target_parameters: ["mlp.experts.gate_up_proj"],
  });
  const single = (e: number, leaf: string) => `layers.0.block_sparse_moe.experts.${e}.${leaf}.weight`;
  const names = [single(0, "w1"), single(0, "w3"), single(1, "w1"), single(1, "w3")];
  const split = await merge(Object.fromEntries(names.map((name, i) => [name, noise([3, 4], i)])), [whole]);
  names.forEach((name, i) => {
    const delta = deltas[Math.floor(i / 2)]!.subarray((i % 2) * 12, (i % 2 + 1) * 12);
    assertClose(split.tensors.get(name), plus(at(noise([3, 4], i)), delta), name);
  });
});

test("the projections of an attention in one module are merged into its parameters", async () => {
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
  assertClose(tensors.get("attn.out_proj.weight"), plus(at(base["attn.out_proj.weight"]), product(oa, ob, 1.5)));
});

const TIED = { tie_word_embeddings: true, vocab_size: 5, architectures: ["LlamaForCausalLM"] };
const TABLE = "model.embed_tokens.weight";
const table = noise([5, 4], 1);
const embeddingPart = {
  "model.embed_tokens.lora_embedding_A": noise([2, 5], 2),
  "model.embed_tokens.lora_embedding_B": noise([4, 2], 3),
};
const headPart = { "lm_head.lora_A.weight": noise([2, 4], 4), "lm_head.lora_B.weight": noise([5, 2], 5) };
const onTable = plus(at(table), transposed(product(noise([2, 5], 2), noise([4, 2], 3), 1.5), 5));
const onHead = plus(at(table), product(noise([2, 4], 4), noise([5, 2], 5), 1.5));

test("a tied table is untied where embedding and head come apart, and config.json says so", async () => {
  const cases = [
    [embeddingPart, onTable, at(table)],
    [headPart, at(table), onHead],
    [{ ...embeddingPart, ...headPart }, onTable, onHead],
  ] as const;
  for (const [parts, embedding, head] of cases) {
    const { tensors, config, report } = await merge({ [TABLE]: table }, [await adapterOf(parts)], { config: TIED });
    assertClose(tensors.get(TABLE), embedding);
    assertClose(tensors.get("lm_head.weight"), head);
    assert.deepEqual([config.tie_word_embeddings, report.report.length], [false, 1]);
  }
  const full = await adapterOf({ ...headPart, [TABLE]: noise([5, 4], 7) }, { modules_to_save: ["embed_tokens"] });
  const { tensors } = await merge({ [TABLE]: table }, [full], { config: TIED });
  assert.deepEqual(tensors.get(TABLE), noise([5, 4], 7));
  assertClose(tensors.get("lm_head.weight"), onHead);
});

test("a tied table stays tied where both change as one", async () => {
  const transposedHead = (name: string, [rows, columns]: readonly [number, number]): StoredTensor => {
    const values = Float32Array.from(transposed(at(embeddingPart[name as keyof typeof embeddingPart]), rows));
    return { dtype: "F32", shape: [rows, columns], bytes: new Uint8Array(values.buffer) };
  };
  const twin = {
    "lm_head.lora_A.weight": transposedHead("model.embed_tokens.lora_embedding_B", [2, 4]),
    "lm_head.lora_B.weight": transposedHead("model.embed_tokens.lora_embedding_A", [5, 2]),
  };
  const rows = {
    "model.embed_tokens.token_adapter.trainable_tokens_delta": noise([1, 4], 6),
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
  };
  const replaced = at(table);
  replaced.set(at(noise([1, 4], 6)), 8);
  const cases = [
    [embeddingPart, { ensure_weight_tying: true }, onTable],
    [{ ...embeddingPart, ...twin }, { ensure_weight_tying: true }, onTable],
    [rows, { trainable_token_indices: [2] }, replaced],
    [{ "q.lora_A.weight": A, "q.lora_B.weight": B, [TABLE]: noise([5, 4], 7) }, {}, at(noise([5, 4], 7))],
  ] as const;
  for (const [parts, fields, want] of cases) {
    const base = { [TABLE]: table, "q.weight": W };
    const { tensors, config } = await merge(base, [await adapterOf(parts, fields)], { config: TIED });
    assertClose(tensors.get(TABLE), want);
    assert.deepEqual([tensors.has("lm_head.weight"), config.tie_word_embeddings], [false, true]);
  }
  const other = await adapterOf({ ...embeddingPart, ...headPart }, { ensure_weight_tying: true });
  await assert.rejects(merge({ [TABLE]: table }, [other], { config: TIED }), { field: "ensure_weight_tying" });
});

test("token rows of the head alone, or a base that does not say that it is tied, untie it too", async () => {
  const parts = {
    "model.embed_tokens.token_adapter.trainable_tokens_delta": noise([1, 4], 6),
    "lm_head.token_adapter.trainable_tokens_delta": noise([1, 4], 7),
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
  };
  const fields = { trainable_token_indices: { embed_tokens: [2], lm_head: [2] } };
  const { tie_word_embeddings: _, ...silent } = TIED;
  for (const config of [TIED, silent]) {
    const merged = await merge({ [TABLE]: table, "q.weight": W }, [await adapterOf(parts, fields)], { config });
    for (const [name, seed] of [[TABLE, 6], ["lm_head.weight", 7]] as const) {
      const want = at(table);
      want.set(at(noise([1, 4], seed)), 8);
      assertClose(merged.tensors.get(name), want, name);
    }
    assert.equal(merged.config.tie_word_embeddings, false);
  }
});

test("a tied table is not untied where the head has no name, or the model has none", async () => {
  const adapter = await adapterOf({
    "wte.lora_embedding_A": noise([2, 5], 2),
    "wte.lora_embedding_B": noise([4, 2], 3),
  });
  const base = { "wte.weight": table };
  const refused = { code: "unsupported", field: "tie_word_embeddings" };
  await assert.rejects(merge(base, [adapter], { config: { ...TIED, architectures: ["GPT2LMHeadModel"] } }), refused);
  const { tensors, config } = await merge(base, [adapter], { config: { ...TIED, architectures: ["BertModel"] } });
  assertClose(tensors.get("wte.weight"), onTable);
  assert.deepEqual([tensors.size, config.tie_word_embeddings], [1, true]);
});

test("replicated layers are written as layers of their own, each with its own update", async () => {
  const name = (layer: number) => `model.layers.${layer}.q_proj.weight`;
  const base = {
    [name(0)]: noise([6, 4], 1),
    [name(1)]: noise([6, 4], 2),
    [name(2)]: noise([6, 4], 3),
    "model.norm.weight": noise([4], 4),
  };
  const parts = Object.fromEntries([0, 1, 2].flatMap((layer) => [
    [`model.layers.${layer}.q_proj.lora_A.weight`, noise([2, 4], 10 + layer)],
    [`model.layers.${layer}.q_proj.lora_B.weight`, noise([6, 2], 20 + layer)],
  ]));
  const adapter = await adapterOf(parts, { layer_replication: [[0, 2], [1, 2]] });
  const { tensors, config, report } = await merge(base, [adapter], { config: { num_hidden_layers: 3 } });
  assert.deepEqual([...tensors.keys()].sort(), [name(0), name(1), name(2), "model.norm.weight"]);
  [1, 2, 2].forEach((source, layer) => {
    const delta = product(noise([2, 4], 10 + layer), noise([6, 2], 20 + layer), 1.5);
    assertClose(tensors.get(name(layer)), plus(at(noise([6, 4], source)), delta), name(layer));
  });
  assert.deepEqual([config.num_hidden_layers, report.report.length], [3, 1]);
  const wrong = await adapterOf(parts, { layer_replication: [[0, 4]] });
  await assert.rejects(merge(base, [wrong]), { name: "MismatchError", field: "layer_replication" });
});

test("new tensors of a sharded base are in its index", async () => {
  const [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  const map = { [TABLE]: first, "q.weight": second };
  const files = new Map([
    [first, encodeSafetensors(new Map([[TABLE, table]]))],
    [second, encodeSafetensors(new Map([["q.weight", W]]))],
    [INDEX, text({ metadata: { total_size: 176 }, weight_map: map })],
    ["config.json", text(TIED)],
  ]);
  const sink = memorySink();
  await mergeCheckpoint(memoryFolder(files), [{ adapter: await adapterOf(headPart) }], sink);
  const index = JSON.parse(new TextDecoder().decode(sink.files.get(INDEX)));
  assert.deepEqual(index, { metadata: { total_size: 256 }, weight_map: { "lm_head.weight": first, ...map } });
  assertClose((await readTensors(sink.files.get(first)!)).get("lm_head.weight"), onHead);
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
