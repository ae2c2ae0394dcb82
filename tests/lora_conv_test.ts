/** Convolutions with adapters answer as PEFT does, and where PEFT has a defect as their definition says. */
import assert from "node:assert/strict";
import { loadAdapter } from "../src/adapter/load.ts";
import type { Backend, Tensor } from "../src/backend.ts";
import { LimitError, ShapeError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { type ConvFactors, LoraConv, type LoraConvOptions } from "../src/lora/lora_conv.ts";
import { sizeOf } from "../src/shape.ts";
import { fromFloat32 } from "../src/formats/dtype.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear, fixture, readTruth } from "./models_support.ts";
import { random } from "./values.ts";

/** [layer, its input, its geometry]. */
const LAYERS = [
  ["conv1", "a", { stride: 2, padding: 1 }],
  ["conv2", "b", { stride: [1, 2], padding: [1, 2] }],
  ["point", "b", {}],
  ["conv3", "c", { padding: 1 }],
] as const;

const TOLERANCES = { wasm: 1e-6, webgpu: 5e-6 } as const;

forEachBackend(
  "LoraConv answers and merges as PEFT does, plain and DoRA, in 1, 2 and 3 dimensions",
  async (backend) => {
    const base = await openCheckpoint(fixture("base/conv"));
    for (const name of ["conv-plain", "conv-dora"]) {
      const adapter = await loadAdapter(fixture(`${name}/adapter`));
      const truth = await readTruth(name);
      for (const [path, input, geometry] of LAYERS) {
        const weight = await base.read(`${path}.weight`);
        const bias = base.tensors.has(`${path}.bias`) ? floats(backend, await base.read(`${path}.bias`)) : undefined;
        const adapters = { a: adapter.modules.get(path)! as ConvFactors };
        const layer = new LoraConv(backend, { weight, ...(bias && { bias }), ...geometry, adapters });
        const given = await truth(`input.${input}`);
        const x = backend.tensor(given.shape, Float32Array.from(given.values));
        const want = await truth(`adapted.${path}`);
        const label = `${name} ${path}`;
        const y = layer.forward(x, { adapter: "a" });
        assert.deepEqual(y.shape, want.shape);
        assertNear(await backend.read(y), want.values, TOLERANCES[backend.name], label);
        const before = await backend.read(layer.forward(x, { adapter: null }));
        await layer.merge("a");
        assertNear(await backend.read(layer.forward(x)), want.values, TOLERANCES[backend.name], `${label} merged`);
        const merged = await truth(`merged.${path}.weight`);
        const read = await layer.read();
        assert.deepEqual(read.shape, merged.shape);
        assertNear(read.values, merged.values, TOLERANCES[backend.name], `${label} merged weight`);
        layer.unmerge();
        assertSameBits(await backend.read(layer.forward(x)), before, `${label} unmerged`);
        layer.dispose();
      }
    }
  },
);

function floats(backend: Backend, { shape, bytes }: { shape: readonly number[]; bytes: Uint8Array }): Tensor {
  return backend.tensor(shape, new Float32Array(bytes.slice().buffer));
}

interface Case extends Omit<LoraConvOptions, "weight" | "bias" | "adapters"> {
  readonly size: readonly number[];
  readonly kernel: readonly number[];
}

const CASES: readonly Case[] = [
  { size: [7], kernel: [3] },
  { size: [9], kernel: [3], dilation: 2, padding: 2, stride: 2 },
  { size: [6, 5], kernel: [3, 2], padding: [1, 0], dilation: [1, 2], groups: 2 },
  { size: [5, 5], kernel: [3, 3], padding: 1, paddingMode: "reflect" },
  { size: [5, 4], kernel: [3, 3], padding: 1, paddingMode: "circular" },
  { size: [4], kernel: [5], padding: 2, paddingMode: "replicate", groups: 4 },
  { size: [3, 4, 3], kernel: [1, 1, 3], padding: [0, 0, 1] },
];

const [BATCH, IN, OUT, RANK] = [3, 4, 8, 4];

type Array64 = { readonly shape: readonly number[]; readonly values: Float64Array };

/** The indices of all elements, in row-major order. */
function indices(sizes: readonly number[]): number[][] {
  return sizes.reduce<number[][]>(
    (all, n) => all.flatMap((index) => Array.from({ length: n }, (_, i) => [...index, i])),
    [[]],
  );
}

/** A convolution by its definition; the weight is (out, in / groups, k…). */
function convolve(x: Array64, weight: Array64, { size, kernel, ...rest }: Case): Array64 {
  const { groups = 1, paddingMode = "zeros" } = rest;
  const each = (value: number | readonly number[] | undefined, absent: number) =>
    kernel.map((_, d) => typeof value === "object" ? value[d]! : value ?? absent);
  const [stride, padding, dilation] = [each(rest.stride, 1), each(rest.padding, 0), each(rest.dilation, 1)];
  const [out, perGroup] = [weight.shape[0]!, weight.shape[1]!];
  const outSize = size.map((n, d) => {
    return Math.floor((n + 2 * padding[d]! - dilation[d]! * (kernel[d]! - 1) - 1) / stride[d]!) + 1;
  });
  const wrap = (at: number, n: number) => {
    if (at >= 0 && at < n) return at;
    const outside = {
      zeros: NaN,
      replicate: at < 0 ? 0 : n - 1,
      circular: (at + n) % n,
      reflect: at < 0 ? -at : 2 * n - 2 - at,
    };
    return outside[paddingMode];
  };
  // Which element of a channel each output sees at each place of the kernel; NaN in a padding of zeros.
  const seen = indices(outSize).map((at) =>
    indices(kernel).map((k) => {
      const place = at.map((position, d) => position * stride[d]! + k[d]! * dilation[d]! - padding[d]!);
      return place.reduce((sum, position, d) => sum * size[d]! + wrap(position, size[d]!), 0);
    })
  );
  const [outputs, positions, inputs] = [sizeOf(outSize), sizeOf(kernel), sizeOf(size)];
  const values = new Float64Array(BATCH * out * outputs);
  for (let i = 0; i < values.length; i++) {
    const [b, o] = [Math.floor(i / (out * outputs)), Math.floor(i / outputs) % out];
    for (let j = 0; j < perGroup * positions; j++) {
      const channel = Math.floor(o / (out / groups)) * perGroup + Math.floor(j / positions);
      const element = x.values[(b * IN + channel) * inputs + seen[i % outputs]![j % positions]!] ?? 0;
      values[i]! += weight.values[o * perGroup * positions + j]! * element;
    }
  }
  return { shape: [BATCH, out, ...outSize], values };
}

function arraysOf(c: Case) {
  const next = random(3);
  const array = (...shape: number[]): Array64 => {
    const length = shape.reduce((a, b) => a * b, 1);
    return { shape, values: Float64Array.from({ length }, () => Math.fround(next())) };
  };
  const groups = c.groups ?? 1;
  const ones = c.kernel.map(() => 1);
  return {
    x: array(BATCH, IN, ...c.size),
    weight: array(OUT, IN / groups, ...c.kernel),
    loraA: array(RANK, IN, ...c.kernel),
    loraB: array(OUT, RANK / groups, ...ones),
  };
}

function setUp(backend: Backend, c: Case) {
  const arrays = arraysOf(c);
  const stored = ({ shape, values }: Array64) => fromFloat32(Float32Array.from(values), shape);
  const adapters = { a: { loraA: stored(arrays.loraA), loraB: stored(arrays.loraB), scaling: 0.5 } };
  const layer = new LoraConv(backend, { ...c, weight: stored(arrays.weight), adapters });
  return { ...arrays, layer, input: backend.tensor(arrays.x.shape, Float32Array.from(arrays.x.values)) };
}

/** conv(x, W) + s B conv(x, A), A over all channels, B by groups. */
function reference(c: Case, { x, weight, loraA, loraB }: Record<"x" | "weight" | "loraA" | "loraB", Array64>): Array64 {
  const y = convolve(x, weight, c);
  const h = convolve(x, loraA, { ...c, groups: 1 });
  const [groups, positions] = [c.groups ?? 1, h.values.length / (BATCH * RANK)];
  const width = RANK / groups;
  const values = y.values.map((value, i) => {
    const [b, o, p] = [Math.floor(i / (OUT * positions)), Math.floor(i / positions) % OUT, i % positions];
    let sum = value;
    for (let j = 0; j < width; j++) {
      const rank = Math.floor(o / (OUT / groups)) * width + j;
      sum += 0.5 * loraB.values[o * width + j]! * h.values[(b * RANK + rank) * positions + p]!;
    }
    return sum;
  });
  return { shape: y.shape, values };
}

forEachBackend("forward() has stride, padding and its modes, dilation and groups, and mixes rows", async (backend) => {
  for (const c of CASES) {
    const { layer, input, ...arrays } = setUp(backend, c);
    const [want, plain] = [reference(c, arrays), convolve(arrays.x, arrays.weight, c)];
    const y = layer.forward(input, { adapter: ["a", null, "a"] });
    assert.deepEqual(y.shape, want.shape);
    const size = want.values.length / BATCH;
    const rows = [...want.values];
    rows.splice(size, size, ...plain.values.subarray(size, 2 * size));
    assertNear(await backend.read(y), rows, 2e-6, JSON.stringify(c));
    if (c.groups) await assert.rejects(layer.merge("a"), { name: "RangeError", message: /groups/ });
    await layer.merge("a", { expandGroups: true });
    assertNear(await backend.read(layer.forward(input)), want.values, 2e-6, `${JSON.stringify(c)} merged`);
    layer.dispose();
  }
});

forEachBackend("backward() has the gradients of x and of the factors", async (backend) => {
  for (const c of CASES.slice(0, 4)) {
    const { layer, input, ...arrays } = setUp(backend, c);
    const want = gradientsOf(c);
    const dx = backend.tensor(arrays.x.shape);
    const gradients = new Map([["a", layer.gradients("a")]]);
    layer.backward(backend.tensor(want.dy.shape, Float32Array.from(want.dy.values)), input, {
      adapter: "a",
      dx,
      gradients,
    });
    const label = JSON.stringify(c);
    assertNear(await backend.read(dx), want.dx, 1e-5, `${label} dx`);
    const { da } = gradients.get("a")!;
    const positions = c.kernel.reduce((a, b) => a * b, 1);
    // Channels are innermost in what is packed.
    const packed = (await backend.read(da)).map((_, i, all) => {
      const [r, channel, k] = [Math.floor(i / (IN * positions)), Math.floor(i / positions) % IN, i % positions];
      return all[(r * positions + k) * IN + channel]!;
    });
    assertNear(packed, want.da, 1e-5, `${label} dA`);
    layer.dispose();
  }
});

const known = new Map<Case, { dy: Array64; dx: Float64Array; da: Float64Array }>();

/** The gradients that all backends must have. */
function gradientsOf(c: Case) {
  const found = known.get(c);
  if (found) return found;
  const arrays = arraysOf(c);
  const next = random(5);
  const { shape, values } = reference(c, arrays);
  const dy = { shape, values: values.map(() => Math.fround(next())) };
  const loss = () => reference(c, arrays).values.reduce((sum, value, i) => sum + value * dy.values[i]!, 0);
  const wanted = { dy, dx: differences(arrays.x.values, loss), da: differences(arrays.loraA.values, loss) };
  known.set(c, wanted);
  return wanted;
}

/** The gradients of what is linear in each of the values: a step of 1 is exact. */
function differences(values: Float64Array, loss: () => number): Float64Array {
  const before = loss();
  return values.map((value, i) => {
    values[i] = value + 1;
    const after = loss();
    values[i] = value;
    return after - before;
  });
}

forEachBackend("LoraConv refuses what does not fit, and frees all it packed", (backend) => {
  const { layer, weight, input } = setUp(backend, CASES[0]!);
  const stored = { dtype: "F32" as const, shape: weight.shape, bytes: new Uint8Array(weight.values.length * 4) };
  const factors = { loraA: { ...stored, shape: [RANK, IN, 4] }, loraB: stored, scaling: 1 };
  assert.throws(() => layer.addAdapter("b", factors), ShapeError);
  for (const shape of [[1, IN + 1, 7], [1, IN, 2], [IN, 7]]) {
    const wrong = backend.tensor(shape);
    assert.throws(() => layer.forward(wrong), ShapeError);
    wrong.dispose();
  }
  assert.throws(() => new LoraConv(backend, { weight: stored, stride: 0 }), ShapeError);
  assert.throws(() => new LoraConv(backend, { weight: stored, groups: 3 }), ShapeError);
  assert.throws(() => new LoraConv(backend, { weight: stored, padding: [1, 1] }), ShapeError);
  const unknown = { paddingMode: "mirror" as "reflect" };
  assert.throws(() => new LoraConv(backend, { weight: stored, ...unknown }), /paddingMode "mirror"/);
  const vast = new LoraConv(backend, { weight: stored, padding: 1e9 });
  assert.throws(() => vast.forward(input), LimitError);
  vast.dispose();
  layer.dispose();
  input.dispose();
  assert.equal(backend.bytes, 0);
});
