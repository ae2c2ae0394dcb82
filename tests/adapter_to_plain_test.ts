import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { createAdapter, type CreateAdapterOptions } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { singularVectors } from "../src/adapter/svd.ts";
import { toPlainLora } from "../src/adapter/to_plain.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";
import { adapterOf, assertClose, at, merge, noise, plus, product, transposed } from "./merge_support.ts";

const [OUT, IN] = [12, 9];
const W = noise([OUT, IN], 3);
const modules = [
  { name: "layers.0.q", inFeatures: IN, outFeatures: OUT },
  { name: "layers.1.q", inFeatures: IN, outFeatures: OUT },
];
const BASE = { "layers.0.q.weight": W, "layers.1.q.weight": noise([OUT, IN], 4) };
const weightOf = (name: string): StoredTensor => BASE[`${name}.weight` as keyof typeof BASE];
const sides = { modules, targetModules: ["q"], r: 2, loraAlpha: 3, weightOf };

/** The adapter after some training. */
function trained(adapter: Adapter): Adapter {
  const moved = [...adapter.modules].map(([name, module], i) => {
    const shift = (tensor: StoredTensor, seed: number): StoredTensor => {
      const values = Float32Array.from(plus(at(tensor), at(noise(tensor.shape, seed)), 0.3));
      return { ...tensor, bytes: new Uint8Array(values.buffer) };
    };
    return [name, { ...module, loraA: shift(module.loraA, 20 + i), loraB: shift(module.loraB, 30 + i) }] as const;
  });
  return new Adapter({ ...adapter, modules: new Map(moved) });
}

/** W − s B₀ A₀ + s B A of each module. */
function truth(initial: Adapter, adapter: Adapter): ReadonlyMap<string, Float64Array> {
  return new Map([...adapter.modules].map(([name, { loraA, loraB, scaling }]) => {
    const before = initial.modules.get(name)!;
    const residual = plus(at(weightOf(name)), product(before.loraA, before.loraB, before.scaling), -1);
    return [`${name}.weight`, plus(residual, product(loraA, loraB, scaling))];
  }));
}

const changing = (init: "pissa" | "olora" | "pissa_niter_3", more: Partial<CreateAdapterOptions> = {}) =>
  createAdapter({ ...sides, init, ...more });

test("an adapter of pissa or olora merges into the original base as PEFT does, which takes the same from it again", async () => {
  const variants = [{}, { useRslora: true }, { rankPattern: { "layers.1.q": 3 }, alphaPattern: { "0.q": 5 } }];
  for (const init of ["pissa", "olora"] as const) {
    for (const variant of variants) {
      const initial = await changing(init, variant);
      const adapter = trained(initial);
      const { tensors, report } = await merge(BASE, [adapter]);
      for (const [name, want] of truth(initial, adapter)) assertClose(tensors.get(name), want, `${init} ${name}`);
      assert.match(report.report[0]!.what, /plain LoRA of twice the rank/);
    }
  }
});

test("with the initial adapter, any initialisation becomes plain LoRA with the same s, which loads again", async () => {
  for (const more of [{}, { useRslora: true }, { rankPattern: { "layers.1.q": 3 } }]) {
    const initial = await changing("pissa_niter_3", more);
    const adapter = trained(initial);
    await assert.rejects(merge(BASE, [adapter]), { code: "unsupported", field: "init_lora_weights" });
    const plain = await toPlainLora(adapter, { initial });
    for (const [name, { rank, scaling }] of plain.modules) {
      assert.deepEqual([rank, scaling], [2 * adapter.modules.get(name)!.rank, adapter.modules.get(name)!.scaling]);
    }
    const sink = memorySink();
    await saveAdapter(plain, sink);
    const loaded = await loadAdapter(sink.files);
    assert.deepEqual([loaded.baseChange, loaded.config.init, loaded.config.useRslora], [null, true, false]);
    assert.deepEqual(loaded.modules, plain.modules);
    const { tensors } = await merge(BASE, [loaded]);
    for (const [name, want] of truth(initial, adapter)) assertClose(tensors.get(name), want, name);
  }
});

test("toPlainLora() asks for what tells how the base changed, and for an initial adapter that fits", async () => {
  const initial = await changing("pissa_niter_3");
  await assert.rejects(toPlainLora(initial, { weightOf }), { name: "MismatchError", expected: "the initial adapter" });
  await assert.rejects(toPlainLora(await changing("pissa"), {}), { name: "MismatchError" });
  const other = await createAdapter({ ...sides, r: 3, init: "pissa" });
  await assert.rejects(toPlainLora(initial, { initial: other }), { name: "MismatchError", tensor: "layers.0.q" });
  const plain = await createAdapter(sides);
  assert.equal(await toPlainLora(plain, {}), plain);
});

test("the residual base is the original with the initial adapter at weight −1, and an adapter says that it is for it", async () => {
  const initial = await changing("pissa");
  const save = async (adapter: Adapter, residualBase: boolean) => {
    const sink = memorySink();
    await saveAdapter(adapter, sink);
    return await loadAdapter(sink.files, { residualBase });
  };
  const taken = { adapter: await save(initial, true), weight: -1 };
  const residual = Object.fromEntries((await merge(BASE, [taken])).tensors);
  const adapter = trained(initial);
  const { tensors } = await merge(residual, [await save(adapter, true)]);
  for (const [name, want] of truth(initial, adapter)) assertClose(tensors.get(name), want, name);
});

test("an embedding of pissa keeps its factors, for PEFT begins it with zero, and its scale", async () => {
  const adapter = await adapterOf({
    "e.lora_embedding_A": noise([2, 30], 5),
    "e.lora_embedding_B": noise([IN, 2], 6),
    "layers.0.q.lora_A.weight": noise([2, IN], 7),
    "layers.0.q.lora_B.weight": noise([OUT, 2], 8),
  }, { init_lora_weights: "pissa", use_rslora: true });
  const plain = await toPlainLora(adapter, { weightOf });
  const sink = memorySink();
  await saveAdapter(plain, sink);
  const [before, after] = [adapter.modules.get("e")!, (await loadAdapter(sink.files)).modules.get("e")!];
  assert.deepEqual([after.loraA, after.loraB, after.rank], [before.loraA, before.loraB, 2]);
  assert.ok(Math.abs(after.scaling - before.scaling) < 1e-12);
});

test("KaSA drops the smallest singular values of the base and adds s B diag(d) A", async () => {
  const [a, b, d] = [noise([2, IN], 5), noise([OUT, 2], 6), noise([2], 7)];
  const adapter = await adapterOf({ "q.lora_A.weight": a, "q.lora_B.weight": b, "q.lora_diag": d }, {
    kasa_config: {},
  });
  const full = singularVectors({ rows: OUT, columns: IN, values: at(W) });
  let want = at(W);
  for (const k of [IN - 2, IN - 1]) {
    want = want.map((value, i) => {
      return value - full.left.values[k * OUT + Math.floor(i / IN)]! * full.right.values[k * IN + i % IN]!;
    });
  }
  const scaled = {
    ...a,
    bytes: new Uint8Array(toFloat32(a).map((v, i) => v * toFloat32(d)[Math.floor(i / IN)]!).buffer),
  };
  want = plus(want, product(scaled, b, 1.5));
  assertClose((await merge({ "q.weight": W }, [adapter])).tensors.get("q.weight"), want);
});

test("olora over a weight that is stored (in, out) is refused: PEFT's is not defined there", async () => {
  const turned = { "q.weight": { ...W, shape: [IN, OUT] } };
  const adapter = await adapterOf({ "q.lora_A.weight": noise([2, IN], 5), "q.lora_B.weight": noise([OUT, 2], 6) }, {
    init_lora_weights: "olora",
  });
  await assert.rejects(merge(turned, [adapter]), { name: "MismatchError", field: "fan_in_fan_out" });
});

test("an initial adapter of half the rank counts as held only where its factors are there", async () => {
  const modules = [{ name: "a", inFeatures: 6, outFeatures: 4 }];
  const create = (r: number, seed: number) =>
    createAdapter({ modules, targetModules: ["a"], r, loraAlpha: r, seed, init: false });
  const [trained, initial] = [await create(2, 1), await create(2, 2)];
  const plain = await toPlainLora(trained, { initial });
  const again = await toPlainLora(plain, { initial });
  assert.deepEqual(again.modules, plain.modules);
  assert.match(again.report.at(-1)!.what, /not subtracted/);
  // Of another run: what it adds would be left in silently.
  const other = { name: "MismatchError", tensor: "a" };
  await assert.rejects(toPlainLora(await create(4, 3), { initial }), other);
});

test("a head whose changed weight is in the file, as PEFT saves it, is not changed once more", async () => {
  const head = { lm_head: noise([OUT, IN], 5), "lm_head.lora_A.weight": noise([2, IN], 6) };
  const b = noise([OUT, 2], 7);
  const adapter = await adapterOf({
    "lm_head.base_layer.weight": head.lm_head,
    "lm_head.lora_A.weight": head["lm_head.lora_A.weight"],
    "lm_head.lora_B.weight": b,
  }, { init_lora_weights: "pissa", target_modules: ["lm_head"] });
  const { tensors } = await merge({ "lm_head.weight": W }, [adapter]);
  const want = plus(at(head.lm_head), product(head["lm_head.lora_A.weight"], b, 1.5));
  assertClose(tensors.get("lm_head.weight"), want);
});

test("of a square weight that is stored (in, out) the same is taken again, whatever fan_in_fan_out says", async () => {
  const [stored, name] = [noise([4, 4], 8), "h.c_proj"];
  const modules = [{ name, inFeatures: 4, outFeatures: 4 }];
  const sides = { modules, targetModules: ["c_proj"], r: 2, loraAlpha: 3, init: "pissa" } as const;
  const initial = await createAdapter({ ...sides, weightOf: () => stored, fanInFanOut: true });
  const { config, ...parts } = trained(initial);
  const adapter = new Adapter({ ...parts, config: { ...config, fanInFanOut: false } });
  const { loraA, loraB, scaling } = adapter.modules.get(name)!;
  const before = initial.modules.get(name)!;
  const change = plus(product(loraA, loraB, scaling), product(before.loraA, before.loraB, scaling), -1);
  const witness = { "h.c_attn.weight": noise([4, 12], 9), "h.c_attn.bias": noise([12], 10) };
  const { tensors } = await merge({ [`${name}.weight`]: stored, ...witness }, [adapter]);
  assertClose(tensors.get(`${name}.weight`), plus(at(stored), transposed(change, 4)));
});
