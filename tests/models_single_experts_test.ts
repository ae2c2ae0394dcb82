/** Mixtures whose experts are stored one by one answer as those with fused experts do, also with adapters on single ones. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { splitExperts } from "../src/adapter/expert_forms.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { MismatchError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { fromFloat32, type StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { readExactly } from "../src/formats/source.ts";
import { loadModel } from "../src/models/mod.ts";
import { fuseSingleExperts } from "../src/models/single_experts.ts";
import { openBackend } from "../src/open.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear, fixture, readTruth, rowsOf } from "./models_support.ts";

type Tensors = Map<string, StoredTensor>;

const FUSED = /^(.*)\.mlp\.experts\.(gate_up_proj|down_proj)$/;

/** The rows of a matrix, or the matrices of a tensor, from one to another. */
function part({ dtype, shape: [count, ...rest], bytes }: StoredTensor, start: number, end: number): StoredTensor {
  const size = bytes.length / count!;
  return { dtype, shape: [end - start, ...rest], bytes: bytes.slice(start * size, end * size) };
}

const matrixOf = ({ dtype, shape, bytes }: StoredTensor): StoredTensor => ({ dtype, shape: shape.slice(1), bytes });

/** The fixture as Mixtral's checkpoints were published. */
async function singleExperts(): Promise<Tensors> {
  const checkpoint = await openCheckpoint(fixture("base/mixtral"));
  const tensors: Tensors = new Map();
  for (const name of checkpoint.tensors.keys()) {
    const [tensor, [, layer, parameter]] = [await checkpoint.read(name), FUSED.exec(name) ?? []];
    if (layer === undefined) {
      tensors.set(name.replace(".mlp.gate.", ".block_sparse_moe.gate."), tensor);
      continue;
    }
    for (let e = 0; e < tensor.shape[0]!; e++) {
      const expert = matrixOf(part(tensor, e, e + 1));
      const [rows, path] = [expert.shape[0]!, `${layer}.block_sparse_moe.experts.${e}`];
      if (parameter === "down_proj") tensors.set(`${path}.w2.weight`, expert);
      else {
        tensors.set(`${path}.w1.weight`, part(expert, 0, rows / 2));
        tensors.set(`${path}.w3.weight`, part(expert, rows / 2, rows));
      }
    }
  }
  return tensors;
}

async function folderOf(tensors: Tensors) {
  const config = fixture("base/mixtral").open("config.json");
  return memoryFolder(
    new Map([
      ["model.safetensors", encodeSafetensors(tensors)],
      ["config.json", await readExactly(config, 0, await config.size())],
    ]),
  );
}

/** The fixture's adapter with factors for each expert's own matrices. */
async function singleAdapter(): Promise<Map<string, Uint8Array>> {
  const base = await singleExperts();
  const { modules } = splitExperts(
    (await loadAdapter(fixture("moe/adapter"))).modules,
    (name) => base.get(name)?.shape,
  );
  const tensors: Tensors = new Map();
  for (const [name, { loraA, loraB }] of modules) {
    tensors.set(`base_model.model.${name}.lora_A.weight`, loraA);
    tensors.set(`base_model.model.${name}.lora_B.weight`, loraB);
  }
  const config = { peft_type: "LORA", r: 3, lora_alpha: 6, target_modules: ["q_proj", "w1", "w2", "w3"] };
  return new Map([
    ["adapter_model.safetensors", encodeSafetensors(tensors)],
    ["adapter_config.json", new TextEncoder().encode(JSON.stringify(config))],
  ]);
}

test("a mixture of single experts answers as the fused one, with adapters of both forms", async () => {
  const backend = await openBackend({ prefer: "wasm" });
  const truth = await readTruth("moe");
  const ids = rowsOf(await truth("input_ids"));
  const [fused, single] = [
    await loadModel(fixture("base/mixtral"), { backend, dtype: "f32" }),
    await loadModel(await folderOf(await singleExperts()), { backend, dtype: "f32" }),
  ];
  const want = (await fused.forward(ids)).values;
  assertSameBits((await single.forward(ids)).values, want, "base");
  const adapted = (await truth("adapted.output")).values;
  for (const model of [fused, single]) {
    await model.loadAdapter("fused", fixture("moe/adapter"));
    await model.loadAdapter("single", await singleAdapter());
    for (const adapter of ["fused", "single"]) {
      assertNear((await model.forward(ids, { adapter })).values, adapted, 2e-5, adapter);
    }
    await model.merge("single");
    assertNear((await model.forward(ids)).values, adapted, 2e-5, "merged");
    model.unmerge();
    assertSameBits((await model.forward(ids)).values, want, "unmerged");
    model.dispose();
  }
  backend.dispose();
});

test("an adapter on the router finds it under either name", async () => {
  const model = await loadModel(await folderOf(await singleExperts()), { dtype: "f32" });
  const values = (shape: readonly number[]) => {
    return fromFloat32(Float32Array.from({ length: shape[0]! * shape[1]! }, (_, i) => Math.sin(i)), shape);
  };
  const outputs: Float32Array[] = [];
  for (const path of ["mlp", "block_sparse_moe"]) {
    const name = (layer: number, factor: string) =>
      `base_model.model.model.layers.${layer}.${path}.gate.lora_${factor}`;
    const tensors: Tensors = new Map([0, 1].flatMap((layer) => [
      [`${name(layer, "A")}.weight`, values([2, 32])],
      [`${name(layer, "B")}.weight`, values([4, 2])],
    ]));
    const config = { peft_type: "LORA", r: 2, lora_alpha: 4, target_modules: ["gate"] };
    await model.loadAdapter(
      path,
      new Map([
        ["adapter_model.safetensors", encodeSafetensors(tensors)],
        ["adapter_config.json", new TextEncoder().encode(JSON.stringify(config))],
      ]),
    );
    outputs.push((await model.forward([[1, 2, 3]], { adapter: path })).values);
  }
  assertSameBits(outputs[0]!, outputs[1]!, "either name");
  const plain = (await model.forward([[1, 2, 3]])).values;
  assert.ok(outputs[0]!.some((value, i) => value !== plain[i]));
  model.dispose();
});

test("a mixture that lacks a matrix of an expert, or has one of another shape, is refused by name", async () => {
  const name = "model.layers.1.block_sparse_moe.experts.2.w3.weight";
  const changes: ((tensors: Tensors) => void)[] = [
    (tensors) => void tensors.delete(name),
    (tensors) => void tensors.set(name, part(tensors.get(name)!, 0, 39)),
    (tensors) => void tensors.set(name.replace("2.w3", "4000000000.w1"), tensors.get(name)!),
  ];
  for (const change of changes) {
    const tensors = await singleExperts();
    change(tensors);
    await assert.rejects(loadModel(await folderOf(tensors)), (error: unknown) => {
      assert.ok(error instanceof MismatchError);
      assert.match(error.message, /model\.layers\.1\.(?:mlp|block_sparse_moe)\.experts\./);
      return true;
    });
  }
});

test("a mixture that has a matrix, a router or a parameter twice is refused by the names of both", async () => {
  const path = "model.layers.0.block_sparse_moe";
  const cases = [
    [`${path}.experts.0.w1.weight`, `${path}.experts.00.w1.weight`],
    [`${path}.experts.0.w1.weight`, "model.layers.0.mlp.experts.0.w1.weight"],
    [`${path}.gate.weight`, "model.layers.0.mlp.gate.weight"],
    [`${path}.experts.0.w2.weight`, "model.layers.0.mlp.experts.down_proj"],
  ];
  for (const [name, twin] of cases as [string, string][]) {
    const tensors = await singleExperts();
    tensors.set(twin, tensors.get(name)!);
    await assert.rejects(loadModel(await folderOf(tensors)), (error: unknown) => {
      assert.ok(error instanceof MismatchError, twin);
      assert.ok(error.message.includes(name) && error.message.includes(twin), error.message);
      return error.tensor !== undefined;
    });
  }
});

test("layers that each have one expert of a high number take no memory for those that are not there", () => {
  const tensors = new Map(
    Array.from({ length: 5000 }, (_, i) => {
      const name = `model.layers.${i}.mlp.experts.4999.w1.weight`;
      return [name, { name, file: "model.safetensors", dtype: "F32", shape: [1, 1], offset: 0, length: 4 }] as const;
    }),
  );
  const checkpoint = { name: "base", files: [], tensors, read: () => Promise.reject(new Error("unread")) };
  const view = fuseSingleExperts(checkpoint as unknown as Parameters<typeof fuseSingleExperts>[0]);
  assert.deepEqual([...view.tensors.keys()], [...tensors.keys()]);
});
