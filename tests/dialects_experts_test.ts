import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Adapter } from "../src/adapter/adapter.ts";
import { readBaseFacts } from "../src/adapter/dialects/base_facts.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { BaseFacts } from "../src/adapter/dialects/options.ts";
import { expertFactors } from "../src/adapter/expert_forms.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { fixtureFolder } from "./adapter_fixtures.ts";
import { assertSame, foreign, mlxFolder, peftFiles, store, tensorsOf, whole } from "./dialects_support.ts";
import { random } from "./values.ts";

const EXPERTS = 3;
const SWITCH = "model.layers.1.mlp.switch_mlp";
const FUSED = "model.layers.1.mlp.experts";

type Tensors = Readonly<Record<string, StoredTensor>>;

/** lora_a (E, r, in) and lora_b (E, out, r) of small whole numbers. */
function projection(path: string, [rank, inputs, outputs]: readonly [number, number, number], seed: number): Tensors {
  return {
    [`${path}.lora_a`]: { ...whole(EXPERTS * rank, inputs, seed), shape: [EXPERTS, rank, inputs] },
    [`${path}.lora_b`]: { ...whole(EXPERTS * outputs, rank, seed + 1), shape: [EXPERTS, outputs, rank] },
  };
}

const PARAMETERS = { rank: 2, scale: 4, dropout: 0 };

/** s b a of one expert, row by row. */
function expertDelta(scaling: number, a: Float32Array, b: Float32Array, rank: number): number[] {
  const columns = a.length / rank;
  return Array.from({ length: b.length / rank * columns }, (_, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    let sum = 0;
    for (let j = 0; j < rank; j++) sum += b[row * rank + j]! * a[j * columns + column]!;
    return scaling * sum;
  });
}

function switchDelta(tensors: Tensors, path: string, expert: number): number[] {
  const [a, b] = [tensors[`${path}.lora_a`]!, tensors[`${path}.lora_b`]!];
  const part = (tensor: StoredTensor) => {
    const values = toFloat32(tensor);
    const size = values.length / EXPERTS;
    return values.subarray(expert * size, (expert + 1) * size);
  };
  return expertDelta(4, part(a), part(b), a.shape[1]!);
}

function fusedDelta(adapter: Adapter, name: string, expert: number): number[] {
  const module = adapter.modules.get(name)!;
  const { a, b } = expertFactors(module, expert);
  return expertDelta(module.scaling, toFloat32(a), toFloat32(b), module.rank);
}

async function assertTensors(bytes: Uint8Array, wanted: Tensors): Promise<void> {
  const found = await tensorsOf(memorySource("adapters.safetensors", bytes));
  assert.deepEqual(Object.fromEntries(found), wanted);
}

const MOE: Tensors = {
  ...projection(`${SWITCH}.gate_proj`, [2, 4, 5], 1),
  ...projection(`${SWITCH}.up_proj`, [2, 4, 5], 3),
  ...projection(`${SWITCH}.down_proj`, [2, 5, 4], 5),
};

test("mlx-lm's switch experts become PEFT's fused parameters with the same update of every expert", async () => {
  const { dialect, adapter } = await readAdapter(mlxFolder(PARAMETERS, MOE));
  assert.equal(dialect, "mlx");
  const sizes = Array.from(adapter.modules.values(), ({ name, kind, rank, experts }) => [name, kind, rank, experts]);
  assert.deepEqual(sizes, [[`${FUSED}.gate_up_proj`, "experts", 4, 3], [`${FUSED}.down_proj`, "experts", 2, 3]]);
  for (let e = 0; e < EXPERTS; e++) {
    const halves = [...switchDelta(MOE, `${SWITCH}.gate_proj`, e), ...switchDelta(MOE, `${SWITCH}.up_proj`, e)];
    assert.deepEqual(fusedDelta(adapter, `${FUSED}.gate_up_proj`, e), halves);
    assert.deepEqual(fusedDelta(adapter, `${FUSED}.down_proj`, e), switchDelta(MOE, `${SWITCH}.down_proj`, e));
  }
  const peft = memorySink();
  await saveAdapter(adapter, peft);
  assertSame(await loadAdapter(memoryFolder(peft.files)), adapter, "saved as PEFT");
  const mlx = memorySink();
  const report = await writeAdapter(adapter, "mlx", mlx);
  await assertTensors(mlx.files.get("adapters.safetensors")!, MOE);
  const { lora_parameters } = JSON.parse(new TextDecoder().decode(mlx.files.get("adapter_config.json")));
  assert.deepEqual(lora_parameters.keys, ["gate_proj", "up_proj", "down_proj"].map((part) => `${SWITCH}.${part}`));
  assert(report.some(({ module, what }) => module === `${SWITCH}.gate_proj` && what.includes("first half")));
});

test("a gate without an up projection is padded, and gate and up of one A keep their rank", async () => {
  const gate = projection(`${SWITCH}.gate_proj`, [2, 4, 5], 1);
  const lone = (await readAdapter(mlxFolder(PARAMETERS, gate))).adapter;
  const up = projection(`${SWITCH}.up_proj`, [2, 4, 5], 3);
  up[`${SWITCH}.up_proj.lora_a`]!.bytes.set(gate[`${SWITCH}.gate_proj.lora_a`]!.bytes);
  const shared = (await readAdapter(mlxFolder(PARAMETERS, { ...gate, ...up }))).adapter;
  for (let e = 0; e < EXPERTS; e++) {
    const wanted = switchDelta(gate, `${SWITCH}.gate_proj`, e);
    assert.deepEqual(fusedDelta(lone, `${FUSED}.gate_up_proj`, e), [...wanted, ...wanted.map(() => 0)]);
    const both = [...wanted, ...switchDelta(up, `${SWITCH}.up_proj`, e)];
    assert.deepEqual(fusedDelta(shared, `${FUSED}.gate_up_proj`, e), both);
  }
  assert.deepEqual([lone, shared].map((adapter) => adapter.modules.get(`${FUSED}.gate_up_proj`)!.rank), [2, 2]);
  const mlx = memorySink();
  await writeAdapter(shared, "mlx", mlx);
  await assertTensors(mlx.files.get("adapters.safetensors")!, { ...gate, ...up });
});

const ADAPTERS = fc.record({
  dtype: fc.constantFrom("F32", "BF16", "F16"),
  r: fc.constantFrom(1, 2, 3, 4),
  alphas: fc.tuple(...[1, 2, 3].map(() => fc.constantFrom(1, 4, 7, 0.3, -2, 0))),
  rslora: fc.boolean(),
  downRank: fc.constantFrom(2, 5),
  isFresh: fc.boolean(),
  seed: fc.nat(0xffff),
});

type Spec = typeof ADAPTERS extends fc.Arbitrary<infer Value> ? Value : never;

async function build({ dtype, r, alphas, rslora, downRank, isFresh, seed }: Spec): Promise<Adapter> {
  const next = random(seed + 1);
  const b = (rows: number, columns: number) => store(dtype, rows, columns, isFresh ? () => 0 : next);
  const [moe, path] = ["mlp.experts", "base_model.model.model.layers.1"];
  const tensors = new Map([
    [`${path}.${moe}.base_layer.lora_A.weight`, store(dtype, r * EXPERTS, 4, next)],
    [`${path}.${moe}.base_layer.lora_B.weight`, b(10, r * EXPERTS)],
    [`${path}.${moe}.lora_A.weight`, store(dtype, downRank * EXPERTS, 5, next)],
    [`${path}.${moe}.lora_B.weight`, b(4, downRank * EXPERTS)],
    [`${path}.self_attn.q_proj.lora_A.weight`, store(dtype, r, 4, next)],
    [`${path}.self_attn.q_proj.lora_B.weight`, b(4, r)],
  ]);
  const config = {
    ...{ r, lora_alpha: alphas[0], use_rslora: rslora, target_modules: ["q_proj"], task_type: "CAUSAL_LM" },
    target_parameters: [`${moe}.gate_up_proj`, `${moe}.down_proj`],
    rank_pattern: { [`${moe}.down_proj`]: downRank },
    alpha_pattern: { [`${moe}.down_proj`]: alphas[1], "q_proj": alphas[2] },
  };
  return await loadAdapter(peftFiles(config, tensors));
}

test("100 random adapters of fused experts come back from mlx with every bit and scale, and mean the same there", async () => {
  const property = fc.asyncProperty(ADAPTERS, async (spec) => {
    const adapter = await build(spec);
    assert.equal(adapter.modules.size, 3);
    const sink = memorySink();
    await writeAdapter(adapter, "mlx", sink);
    const { adapter: read } = await readAdapter(memoryFolder(sink.files));
    assertSame(read, adapter, "mlx");
    assert.deepEqual(read.config.raw.get("target_parameters"), adapter.config.raw.get("target_parameters"));
    const { adapter: theirs } = await readAdapter(await foreign(sink.files));
    for (const name of [`${FUSED}.gate_up_proj`, `${FUSED}.down_proj`]) {
      for (let e = 0; e < EXPERTS; e++) {
        const [found, wanted] = [fusedDelta(theirs, name, e), fusedDelta(adapter, name, e)];
        const most = Math.max(...wanted.map(Math.abs));
        found.forEach((value, i) => assert(Math.abs(value - wanted[i]!) <= 2e-7 * most, `${value} ${wanted[i]}`));
      }
    }
  });
  await fc.assert(property, { numRuns: 100, seed: 2 });
});

test("Mixtral's experts get their old path where the base tells it", async () => {
  const adapter = await loadAdapter(fixtureFolder("moe/adapter"));
  const old = "block_sparse_moe";
  const bases: readonly (readonly [base: BaseFacts, owner: string, told: number])[] = [
    [{}, "mlp", 1],
    [{ modules: [`model.layers.0.${old}.gate`] }, old, 1],
    [await readBaseFacts(fixtureFolder("base/mixtral")), old, 0],
    [{ modelType: "qwen3_moe" }, "mlp", 0],
  ];
  for (const [base, owner, told] of bases) {
    const sink = memorySink();
    assert.equal((await writeAdapter(adapter, "mlx", sink, base)).length, told);
    const names = [...(await tensorsOf(memorySource("a", sink.files.get("adapters.safetensors")!))).keys()];
    assert(names.includes(`model.layers.0.${owner}.switch_mlp.down_proj.lora_a`), names.join());
    assertSame((await readAdapter(memoryFolder(sink.files))).adapter, adapter, owner);
  }
});

test("lone factors of experts, and factors that do not fit, are refused by tensor name", async () => {
  const name = (path: string, part: string) => `${SWITCH}.${path}.lora_${part}`;
  const { [name("up_proj", "a")]: a, [name("up_proj", "b")]: b, ...rest } = MOE;
  const lone = readAdapter(mlxFolder(PARAMETERS, { ...rest, [name("up_proj", "a")]: a! }));
  await assert.rejects(lone, { name: "MismatchError", tensor: name("up_proj", "a"), missing: [name("up_proj", "b")] });
  const cases: readonly (readonly [tensors: Tensors, tensor: string, error: string])[] = [
    [
      { [name("up_proj", "a")]: a!, [name("up_proj", "b")]: { ...b!, shape: [3, 2, 5] } },
      name("up_proj", "b"),
      "MismatchError",
    ],
    [projection(`${SWITCH}.up_proj`, [2, 6, 5], 1), name("up_proj", "a"), "MismatchError"],
    [
      { [name("up_proj", "a")]: a!, [name("up_proj", "b")]: { ...store("BF16", 15, 2, random(1)), shape: [3, 5, 2] } },
      name("up_proj", "b"),
      "FormatError",
    ],
    [
      { [name("up_proj", "a")]: { ...a!, dtype: "I32" }, [name("up_proj", "b")]: b! },
      name("up_proj", "a"),
      "FormatError",
    ],
  ];
  for (const [tensors, tensor, error] of cases) {
    await assert.rejects(readAdapter(mlxFolder(PARAMETERS, { ...rest, ...tensors })), { name: error, tensor }, tensor);
  }
  const wide = projection(`${SWITCH}.down_proj`, [300, 5, 4], 1);
  const tensor = `${SWITCH}.down_proj.lora_a`;
  await assert.rejects(readAdapter(mlxFolder(PARAMETERS, wide)), { name: "LimitError", field: "rank", tensor });
  await assert.rejects(readAdapter(mlxFolder(PARAMETERS, MOE), { limits: { modules: 2 } }), {
    name: "LimitError",
    field: "modules",
  });
});

test("experts that another tool has not are refused by module", async () => {
  const adapter = await loadAdapter(fixtureFolder("moe/adapter"));
  const [first] = [...adapter.modules.values()].filter(({ kind }) => kind === "experts");
  const refused = async (change: object, config: object = {}) => {
    const modules = new Map([[first!.name, { ...first!, ...change }]]);
    const other = Object.assign(Object.create(Object.getPrototypeOf(adapter)), adapter, { modules }) as Adapter;
    Object.assign(other, { config: { ...adapter.config, ...config } });
    await writeAdapter(other, "mlx", memorySink());
  };
  const refusal = { name: "MismatchError", code: "experts" };
  await assert.rejects(refused({ name: "model.layers.0.mlp.experts.w1", parameter: "w1" }), refusal);
  await assert.rejects(refused({}, { baseModel: "openai/gpt-oss-20b" }), { ...refusal, tensor: first!.name });
  for (const to of ["gguf", "kohya", "diffusers", "loralib"] as const) {
    const written = writeAdapter(adapter, to, memorySink(), { architecture: "llama", heads: 4 });
    await assert.rejects(written, { name: "MismatchError", code: "loss", tensor: first!.name }, to);
  }
});

test("a module that mlx has under two paths is refused: neither may be lost", async () => {
  const down = projection(`${SWITCH}.down_proj`, [2, 5, 6], 1);
  const old = projection(`${SWITCH.replace("mlp", "block_sparse_moe")}.down_proj`, [2, 5, 6], 3);
  const named = { [`${FUSED}.down_proj.lora_a`]: whole(5, 2, 1), [`${FUSED}.down_proj.lora_b`]: whole(2, 6, 2) };
  for (const twin of [old, named]) {
    const refusal = {
      name: "FormatError",
      file: "adapters.safetensors",
      message: /with both .+lora_a" and ".+lora_a"/,
    };
    await assert.rejects(readAdapter(mlxFolder(PARAMETERS, { ...down, ...twin })), refusal);
  }
});
