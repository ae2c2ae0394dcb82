import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { combineAdapters, type CombineOptions, resizeAdapter } from "../src/adapter/combine.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { singularVectors } from "../src/adapter/svd.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";
import { deltaOf, distance, makeAdapter, norm, reportedError, valuesOf, wantedSum } from "./adapter_combine_support.ts";
import { expectedTensors, fixture, fixtureFolder, readTensors, relativeError } from "./adapter_fixtures.ts";
import { add, type Matrix, matrix, product, scaled } from "./reference.ts";

const Q = "layers.0.q_proj";
const V = "layers.0.v_proj";

/** ‖ΔW‖ of what a truncation to `rank` must lose, relative to the whole. */
function optimum(wanted: Matrix, rank: number): number {
  const [rows, columns] = wanted.shape;
  const { sigma } = singularVectors({ rows, columns, values: wanted.values });
  return Math.sqrt(sigma.slice(rank).reduce((sum, value) => sum + value * value, 0)) / norm(wanted);
}

test("combineAdapters() by cat gives PEFT's exact sum of three adapters with rsLoRA and a negative weight", async () => {
  const load = (name: string) => loadAdapter(fixtureFolder(`multi/${name}`));
  const weights = { emotion: 0.7, summary: -0.4, qa: 1.3 };
  const terms = await Promise.all(
    Object.entries(weights).map(async ([name, weight]) => ({ adapter: await load(name), weight })),
  );
  const combined = await combineAdapters(terms);
  const base = await readTensors(fixture("base/llama/model.safetensors"));
  const expected = await expectedTensors("multi", "weighted.");
  assert.equal(combined.modules.size, expected.size);
  for (const [weight, { values }] of expected) {
    const module = combined.modules.get(weight.replace(/\.weight$/, ""))!;
    const w = toFloat32(base.get(weight)!);
    const got = deltaOf(module).values.map((value, i) => value + w[i]!);
    assert.ok(relativeError(got, values) < 1e-6, weight);
    assert.ok(reportedError(combined, module.name) < 1e-7, weight);
  }
});

test("combineAdapters() by cat has an error of float32 rounding only, and none where nothing is rounded", async () => {
  const [a, b] = [await makeAdapter(1, { [Q]: { rank: 2 } }), await makeAdapter(2, { [Q]: { rank: 4 } })];
  const exact = await combineAdapters([{ adapter: a, weight: 0.5 }, { adapter: b, weight: -2 / 1.5 }]);
  // Scales 0.5 · 6 / 2 and -2 / 1.5 · 6 / 4: the first rounds, the second is -2.
  const wanted = wantedSum([[a, 0.5], [b, -2 / 1.5]], Q);
  const error = distance(deltaOf(exact.modules.get(Q)!), wanted);
  assert.ok(error > 0 && error < 6e-8, `${error}`);
  assert.ok(Math.abs(reportedError(exact, Q) - error) < 1e-12);
  const twice = await combineAdapters([{ adapter: b, weight: 2 / 1.5 }, { adapter: b, weight: -1 / 1.5 }]);
  assert.ok(reportedError(twice, Q) < 1e-15);
  assert.ok(distance(deltaOf(twice.modules.get(Q)!), wantedSum([[b, 1 / 1.5]], Q)) < 1e-14);
});

test("combineAdapters() writes s = 1 for every reader: alpha = rank, no rsLoRA, init true, ranks by full paths", async () => {
  const paths = {
    [Q]: { rank: 2 },
    [V]: { rank: 3 },
    "x.layers.0.v_proj": { rank: 2 },
    "layers.1.q_proj": { rank: 2 },
  };
  const config = { use_rslora: true, alpha_pattern: { q_proj: 9 }, init_lora_weights: "gaussian", lora_dropout: 0.25 };
  const first = await makeAdapter(3, paths, config);
  const second = await makeAdapter(4, { [Q]: { rank: 4 }, [V]: { rank: 4 }, extra: { rank: 4 } });
  const combined = await combineAdapters([{ adapter: first }, { adapter: second, weight: 2 }]);
  const ranks = Array.from(combined.modules.values(), ({ name, rank }) => [name, rank]);
  assert.deepEqual(ranks, [[Q, 6], [V, 7], ["layers.1.q_proj", 2], ["x.layers.0.v_proj", 2], ["extra", 4]]);
  const { raw, ...fields } = combined.config;
  assert.deepEqual([fields.r, fields.loraAlpha, fields.useRslora, fields.loraDropout], [2, 2, false, 0.25]);
  assert.equal(raw.get("init_lora_weights"), true);
  // "layers.0.v_proj" ends another path, so the key is tied to the start.
  const patterns = [["layers\\.0\\.q_proj", 6], ["^layers\\.0\\.v_proj", 7], ["extra", 4]];
  assert.deepEqual([[...fields.rankPattern], [...fields.alphaPattern]], [patterns, patterns]);
  assert.deepEqual(fields.targetModules, [...combined.modules.keys()]);
  for (const { scaling, alpha, rank } of combined.modules.values()) assert.deepEqual([scaling, alpha], [1, rank]);
});

test("combineAdapters() gives adapters that save and load as they are", async () => {
  const first = await makeAdapter(5, { [Q]: { rank: 2 }, [V]: { rank: 3 } });
  const second = await makeAdapter(6, { [V]: { rank: 1 } });
  for (const options of [{}, { method: "svd", rank: 2 }, { dtype: "BF16" }] as const) {
    const combined = await combineAdapters([{ adapter: first }, { adapter: second }], options);
    const sink = memorySink();
    await saveAdapter(combined, sink);
    const loaded = await loadAdapter(sink.files);
    assert.deepEqual([...loaded.modules], [...combined.modules]);
    assert.deepEqual([loaded.sha256, loaded.bytes, loaded.report], [combined.sha256, combined.bytes, []]);
  }
});

test("combineAdapters() by svd reaches the optimum of its rank, which the report has", async () => {
  const shapes = {
    wide: { rank: 5, inFeatures: 40, outFeatures: 7 },
    tall: { rank: 5, inFeatures: 6, outFeatures: 31 },
  };
  const first = await makeAdapter(7, { ...shapes, [Q]: { rank: 5 } }, { use_rslora: true });
  const second = await makeAdapter(8, { wide: { ...shapes.wide, rank: 3 }, tall: { ...shapes.tall, rank: 4 } });
  for (const rank of [1, 3, 5, 8, 100]) {
    const combined = await combineAdapters([{ adapter: first, weight: -0.6 }, { adapter: second }], {
      method: "svd",
      rank,
    });
    for (const [name, module] of combined.modules) {
      const wanted = wantedSum([[first, -0.6], [second, 1]], name);
      const best = optimum(wanted, rank);
      const error = distance(deltaOf(module), wanted);
      assert.ok(Math.abs(error - best) <= 1e-6, `${name} to ${rank}: ${error}, optimum ${best}`);
      assert.ok(Math.abs(error - reportedError(combined, name)) < 1e-12, `${name} to ${rank}`);
      assert.ok(module.rank <= rank, name);
    }
  }
});

test("combineAdapters() by svd keeps the largest of a module's ranks, or the least that has the energy", async () => {
  const first = await makeAdapter(9, { [Q]: { rank: 2 }, [V]: { rank: 3 } });
  const second = await makeAdapter(10, { [Q]: { rank: 4 } });
  const terms = [{ adapter: first }, { adapter: second }];
  const byDefault = await combineAdapters(terms, { method: "svd" });
  assert.deepEqual(Array.from(byDefault.modules.values(), ({ rank }) => rank), [4, 3]);
  for (const energy of [0.3, 0.9, 0.999, 1]) {
    const combined = await combineAdapters(terms, { method: "svd", energy });
    for (const [name, { rank }] of combined.modules) {
      const wanted = wantedSum([[first, 1], [second, 1]], name);
      assert.ok(1 - optimum(wanted, rank) ** 2 >= energy - 1e-12, `${name}: rank ${rank} has too little`);
      assert.ok(1 - optimum(wanted, rank - 1) ** 2 < energy, `${name}: rank ${rank} has too much`);
    }
  }
});

test("resizeAdapter() lowers ranks with the least error and leaves smaller modules as they are", async () => {
  const adapter = await makeAdapter(11, { [Q]: { rank: 6 }, [V]: { rank: 2 } });
  const small = await resizeAdapter(adapter, { rank: 3 });
  assert.deepEqual(Array.from(small.modules.values(), ({ rank }) => rank), [3, 2]);
  const best = optimum(wantedSum([[adapter, 1]], Q), 3);
  assert.ok(best > 0.05 && Math.abs(reportedError(small, Q) - best) < 1e-6);
  assert.ok(reportedError(small, V) < 1e-6);
  assert.equal(small.name, adapter.name);
  await assert.rejects(resizeAdapter(adapter, {}), /without a size: expected rank or energy/);
});

/** PEFT's linear: Σ sign(c)√|c| A and Σ √|c| B, multiplied. */
function peftLinear(terms: readonly (readonly [Adapter, number])[], module: string): Matrix {
  const parts = terms.map(([{ modules }, weight]) => {
    const { loraA, loraB, scaling } = modules.get(module)!;
    const c = weight * scaling;
    return {
      a: scaled(valuesOf(loraA), Math.sign(c) * Math.sqrt(Math.abs(c))),
      b: scaled(valuesOf(loraB), Math.sqrt(Math.abs(c))),
    };
  });
  return product(parts.map(({ b }) => b).reduce(add), parts.map(({ a }) => a).reduce(add));
}

test("combineAdapters() by linear is PEFT's formula with its cross terms, and reports what they cost", async () => {
  const [a, b] = [await makeAdapter(12, { [Q]: { rank: 4 } }), await makeAdapter(13, { [Q]: { rank: 4 } })];
  const linear = await combineAdapters([{ adapter: a, weight: 0.7 }, { adapter: b, weight: -1.2 }], {
    method: "linear",
  });
  assert.ok(distance(deltaOf(linear.modules.get(Q)!), peftLinear([[a, 0.7], [b, -1.2]], Q)) < 1e-6);
  const wanted = wantedSum([[a, 0.7], [b, -1.2]], Q);
  const error = distance(peftLinear([[a, 0.7], [b, -1.2]], Q), wanted);
  assert.ok(error > 0.5 && Math.abs(reportedError(linear, Q) - error) < 1e-6, `${error}`);
});

test("combineAdapters() differs from PEFT 0.21.2 after rsLoRA: PEFT scales the sum by √r, and the report says so", async () => {
  const first = await makeAdapter(14, { [Q]: { rank: 2 } }, { use_rslora: true });
  const second = await makeAdapter(15, { [Q]: { rank: 4 } });
  const combined = await combineAdapters([{ adapter: first }, { adapter: second }]);
  const wanted = wantedSum([[first, 1], [second, 1]], Q);
  const ours = deltaOf(combined.modules.get(Q)!);
  // PEFT keeps use_rslora of the first: alpha / √r = 6 / √6.
  const theirs = scaled(ours, 6 / Math.sqrt(6));
  assert.ok(distance(ours, wanted) < 1e-7);
  assert.ok(Math.abs(distance(theirs, wanted) - 1.449) < 1e-3);
  assert.ok(
    combined.report.some(({ module, what }) => module === Q && what === "PEFT 0.21.2 would scale this by 2.45"),
  );
  const swapped = await combineAdapters([{ adapter: second }, { adapter: first }]);
  assert.ok(!swapped.report.some(({ what }) => what.includes("PEFT 0.21.2")));
});

/** ⌊density · size⌋ largest magnitudes; the test's values are all different. */
function pruned({ shape, values }: Matrix, density: number): Matrix {
  const sizes = [...values].map(Math.abs).sort((x, y) => y - x);
  const least = sizes[Math.floor(density * values.length) - 1] ?? Infinity;
  return matrix(...shape, (i, j) => Math.abs(values[i * shape[1] + j]!) >= least ? values[i * shape[1] + j]! : 0);
}

/** TIES after pruning. */
function ties(tensors: readonly Matrix[], weights: readonly number[], frequency: boolean): Matrix {
  return matrix(...tensors[0]!.shape, (i, j) => {
    const values = tensors.map((tensor) => tensor.values[i * tensor.shape[1] + j]!);
    const votes = values.map((value) => frequency ? Math.sign(value) : value).reduce((x, y) => x + y);
    const agreeing = values.map((value) => Math.sign(value) === (votes >= 0 ? 1 : -1));
    const sum = values.reduce((sum, value, k) => sum + (agreeing[k] ? weights[k]! * value : 0), 0);
    return sum / Math.max(1, agreeing.filter(Boolean).length);
  });
}

test("combineAdapters() prunes and votes as PEFT does, on factors and on updates", async () => {
  const adapters = await Promise.all([16, 17, 18].map((seed) => makeAdapter(seed, { [Q]: { rank: 4 } })));
  const weights = [1, -0.5, 0.25];
  const c = weights.map((weight) => weight * 1.5);
  const [a, b] = [
    adapters.map((x) => valuesOf(x.modules.get(Q)!.loraA)),
    adapters.map((x) => valuesOf(x.modules.get(Q)!.loraB)),
  ];
  const deltas = adapters.map((adapter) => deltaOf(adapter.modules.get(Q)!));
  const rootsA = c.map((ci) => Math.sign(ci) * Math.sqrt(Math.abs(ci)));
  const rootsB = c.map((ci) => Math.sqrt(Math.abs(ci)));
  const prune = (tensors: readonly Matrix[]) => tensors.map((tensor) => pruned(tensor, 0.4));
  const sum = (tensors: readonly Matrix[], factors: readonly number[]) =>
    tensors.map((tensor, i) => scaled(tensor, factors[i]!)).reduce(add);
  const cases: readonly (readonly [CombineOptions, Matrix])[] = [
    [{ method: "magnitude_prune" }, product(sum(prune(b), rootsB), sum(prune(a), rootsA))],
    [{ method: "ties" }, product(ties(prune(b), rootsB, false), ties(prune(a), rootsA, false))],
    [
      { method: "ties", majoritySign: "frequency" },
      product(ties(prune(b), rootsB, true), ties(prune(a), rootsA, true)),
    ],
    [{ method: "magnitude_prune_svd", rank: 9 }, sum(prune(deltas), weights)],
    [{ method: "ties_svd", rank: 9 }, ties(prune(deltas), weights, false)],
    [{ method: "ties_svd", rank: 9, majoritySign: "frequency" }, ties(prune(deltas), weights, true)],
  ];
  const terms = adapters.map((adapter, i) => ({ adapter, weight: weights[i]! }));
  for (const [options, expected] of cases) {
    const combined = await combineAdapters(terms, { ...options, density: 0.4 });
    assert.ok(distance(deltaOf(combined.modules.get(Q)!), expected) < 1e-6, JSON.stringify(options));
  }
  const whole = await combineAdapters(terms, { method: "magnitude_prune_svd", rank: 9, density: 1 });
  assert.ok(reportedError(whole, Q) < 1e-6, "a density of 1 prunes nothing");
});

test("combineAdapters() by dare drops by its seed, keeps the share and divides by it", async () => {
  const adapter = await makeAdapter(19, { [Q]: { rank: 8, inFeatures: 100, outFeatures: 60 } }, { lora_alpha: 8 });
  const dare = (options: CombineOptions) => combineAdapters([{ adapter }], { density: 0.25, ...options });
  const first = await dare({ method: "dare_linear", seed: 1 });
  const [got, original] = [first, adapter].map((x) => valuesOf(x.modules.get(Q)!.loraA).values);
  const kept = [...got!].filter((value, i) => {
    assert.ok(value === 0 || Math.abs(value - 4 * original![i]!) < 1e-6);
    return value !== 0;
  });
  assert.ok(Math.abs(kept.length / 800 - 0.25) < 0.05, `${kept.length} of 800 kept`);
  assert.equal((await dare({ method: "dare_linear", seed: 1 })).sha256, first.sha256);
  assert.notEqual((await dare({ method: "dare_linear", seed: 2 })).sha256, first.sha256);
  assert.equal((await dare({ method: "dare_ties", seed: 1 })).sha256, first.sha256, "one adapter always wins the vote");
  const svd = await dare({ method: "dare_linear_svd", seed: 1, rank: 60 });
  const share = deltaOf(svd.modules.get(Q)!).values.filter((value) => Math.abs(value) > 1e-5).length / 6000;
  assert.ok(Math.abs(share - 0.25) < 0.03, `${share} of the update kept`);
});

test("combineAdapters() keeps the base's table that PEFT saves beside a head's factors, and refuses two of them", async () => {
  const [one, two] = [await makeAdapter(1, { lm_head: { rank: 2 } }), await makeAdapter(2, { lm_head: { rank: 3 } })];
  const table = one.modules.get("lm_head")!.loraB;
  const withTable = (adapter: Adapter, tensor: StoredTensor) =>
    new Adapter({ ...adapter, replacements: new Map([["lm_head.weight", tensor]]) });
  const [first, second] = [withTable(one, table), withTable(two, { ...table, bytes: table.bytes.slice() })];
  const combined = await combineAdapters([{ adapter: first, weight: 0.5 }, { adapter: second }, { adapter: one }]);
  assert.deepEqual([...combined.replacements], [["lm_head.weight", table]]);
  assert.equal(combined.modules.get("lm_head")!.rank, 7);
  const sink = memorySink();
  await saveAdapter(combined, sink);
  assert.deepEqual((await loadAdapter(sink.files)).replacements.get("lm_head.weight")!.bytes, table.bytes);
  assert.equal((await resizeAdapter(first, { rank: 1 })).replacements.size, 1);
  const other = withTable(two, two.modules.get("lm_head")!.loraB);
  await assert.rejects(combineAdapters([{ adapter: first }, { adapter: other }]), {
    name: "MismatchError",
    tensor: "lm_head.weight",
  });
});
