import assert from "node:assert/strict";
import { test } from "node:test";
import { MismatchError } from "../src/errors.ts";
import { adapterOf, assertClose, at, merge, noise, plus, product, transposed } from "./merge_support.ts";

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

test("a base with parameters that the config targets and the adapter lacks is refused, unless strict is false", async () => {
  const { a, b } = experts(3, [6, 4], 2);
  const adapter = await adapterOf({ "0.mlp.experts.lora_A.weight": a, "0.mlp.experts.lora_B.weight": b }, {
    target_parameters: ["experts.gate_up_proj"],
  });
  const base = { "0.mlp.experts.gate_up_proj": noise([3, 6, 4], 1), "1.mlp.experts.gate_up_proj": noise([3, 6, 4], 2) };
  const missing = ["1.mlp.experts.gate_up_proj"];
  await assert.rejects(merge(base, [adapter]), (error) => {
    assert.ok(error instanceof MismatchError && error.field === "target_parameters");
    assert.deepEqual(error.missing, missing);
    return true;
  });
  const { report } = await merge(base, [adapter], { strict: false });
  assert.deepEqual(report.report.map(({ module }) => module), missing);
});

test("a router is found under the name that it has beside single experts, and beside fused ones", async () => {
  const [fused, single] = ["layers.0.mlp.gate", "layers.0.block_sparse_moe.gate"];
  const [weight, a, b] = [noise([3, 4], 1), noise([2, 4], 2), noise([3, 2], 3)];
  for (const [own, other] of [[fused, single], [single, fused]] as const) {
    for (const config of [{ target_modules: ["gate"] }, { target_modules: [], target_parameters: ["gate.weight"] }]) {
      const adapter = await adapterOf({ [`${own}.lora_A.weight`]: a, [`${own}.lora_B.weight`]: b }, config);
      const { tensors } = await merge({ [`${other}.weight`]: weight }, [adapter]);
      assertClose(tensors.get(`${other}.weight`), plus(at(weight), product(a, b, 1.5)), other);
    }
  }
});
