/** What mlx-lm itself asks of a folder, beyond names and orientation. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter, LoraModule } from "../src/adapter/adapter.ts";
import { readBaseFacts } from "../src/adapter/dialects/base_facts.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { transposeStored } from "../src/adapter/dialects/matrix_bytes.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { fixtureFolder } from "./adapter_fixtures.ts";
import { assertSame, deltaError, foreign, peftFiles, store, tensorsOf } from "./dialects_support.ts";
import { random } from "./values.ts";

const LAYER = "model.layers.0";
const FILE = "adapters.safetensors";

/** An adapter whose modules, by path, have these ranks; experts are (E, r, in) and (E, out, r) of three. */
async function adapterOf(
  ranks: Readonly<Record<string, number>>,
  more: Readonly<Record<string, unknown>> = {},
): Promise<Adapter> {
  const next = random(3);
  const tensors = new Map<string, StoredTensor>();
  for (const [path, rank] of Object.entries(ranks)) {
    const isTable = path.endsWith("embed_tokens");
    const [a, b] = isTable ? ["lora_embedding_A", "lora_embedding_B"] : ["lora_A.weight", "lora_B.weight"];
    const experts = path.endsWith("experts") ? 3 : 1;
    tensors.set(`base_model.model.${path}.${a}`, store("BF16", rank * experts, isTable ? 9 : 6, next));
    tensors.set(`base_model.model.${path}.${b}`, store("BF16", 4, rank * experts, next));
  }
  const isExperts = ranks[`${LAYER}.mlp.experts`] !== undefined;
  const config = {
    ...{ r: 2, lora_alpha: 4, task_type: "CAUSAL_LM" },
    rank_pattern: Object.fromEntries(
      Object.entries(ranks).map(([path, r]) => [path.replace(/experts$/, "$&.down_proj"), r]),
    ),
    target_modules: Object.keys(ranks).filter((path) => !path.endsWith("experts")),
    ...(isExperts && { target_parameters: ["mlp.experts.down_proj"] }),
  };
  return await loadAdapter(peftFiles({ ...config, ...more }, tensors));
}

function readConfig(files: ReadonlyMap<string, Uint8Array>) {
  return JSON.parse(new TextDecoder().decode(files.get("adapter_config.json")));
}

test("every layer that mlx-lm gets has the one rank of its config, and comes back with its own", async () => {
  const ranks = { [`${LAYER}.self_attn.q_proj`]: 2, [`${LAYER}.self_attn.v_proj`]: 5, "model.embed_tokens": 3 };
  for (const more of [{}, { [`${LAYER}.mlp.experts`]: 4 }, { [`${LAYER}.mlp.experts`]: 7 }]) {
    const adapter = await adapterOf({ ...ranks, ...more });
    const sink = memorySink();
    const report = await writeAdapter(adapter, "mlx", sink, { tied: false });
    const { rank } = readConfig(sink.files).lora_parameters;
    assert.equal(rank, Math.max(...Object.values({ ...ranks, ...more })));
    for (const [name, { shape }] of await tensorsOf(memorySource(FILE, sink.files.get(FILE)!))) {
      const isB = name.endsWith(".lora_b");
      assert.equal(shape[shape.length === 3 ? (isB ? 2 : 1) : isB ? 0 : 1], rank, name);
    }
    assert(report.some(({ what }) => what.includes(`with zeros to rank ${rank}`)));
    assertSame((await readAdapter(memoryFolder(sink.files))).adapter, adapter, "carried");
    const { adapter: alone } = await readAdapter(await foreign(sink.files));
    assert.deepEqual(new Set(Array.from(alone.modules.values(), (module) => module.rank)), new Set([rank]));
    if (Object.keys(more).length === 0) assert(deltaError(alone, adapter) < 6e-8);
  }
});

test("ranks that the file does not bear out are passed over", async () => {
  const [q, v] = [`${LAYER}.self_attn.q_proj`, `${LAYER}.self_attn.v_proj`];
  const sink = memorySink();
  await writeAdapter(await adapterOf({ [q]: 2, [v]: 5 }), "mlx", sink);
  const source = memorySource(FILE, sink.files.get(FILE)!);
  const tensors = await tensorsOf(source);
  const { metadata } = await readSafetensorsHeader(source);
  assert.deepEqual(JSON.parse(metadata.get("lowrank.ranks")!), { [q]: 2 });
  for (const rank of [1, 0, -1, 2.5, 5, 6, 1e15, "2", null]) {
    const texts = new Map(metadata).set("lowrank.ranks", JSON.stringify({ [q]: rank, [v]: 4, other: 1 }));
    const files = new Map(sink.files).set(FILE, encodeSafetensors(tensors, texts));
    const { adapter } = await readAdapter(memoryFolder(files));
    assert.deepEqual(Array.from(adapter.modules.values(), (module) => module.rank), [5, 5], `${rank}`);
  }
});

test("factors of a tied embedding go where both tools let them act in the head too, and nowhere else", async () => {
  const [table, head] = ["model.embed_tokens", "lm_head"];
  const alone = await adapterOf({ [table]: 2 });
  const both = await adapterOf({ [table]: 2 }, { ensure_weight_tying: true });
  const heads = await adapterOf({ [head]: 2 });
  const facts = { architecture: "llama", heads: 2 };
  const refused = (adapter: Adapter, to: "mlx" | "gguf", tensor: string) =>
    assert.rejects(writeAdapter(adapter, to, memorySink(), { ...facts, tied: true }), {
      name: "MismatchError",
      code: "loss",
      tensor,
    });
  for (const to of ["mlx", "gguf"] as const) {
    await refused(alone, to, table);
    await refused(heads, to, head);
    for (const adapter of [alone, heads]) {
      const report = await writeAdapter(adapter, to, memorySink(), { ...facts, tied: false });
      assert.deepEqual(report.filter(({ what }) => !what.includes("written as F32")), [], to);
    }
  }
  await refused(both, "gguf", "ensure_weight_tying");
  const sink = memorySink();
  assert.deepEqual(await writeAdapter(both, "mlx", sink, { tied: true }), []);
  const { adapter } = await readAdapter(memoryFolder(sink.files), { tied: true });
  assertSame(adapter, both, "tied");
  assert.equal(adapter.config.ensureWeightTying, true);
});

test("factors of an embedding that mlx-lm trained are those of a tied head too", async () => {
  const sink = memorySink();
  const unknown = await writeAdapter(await adapterOf({ "model.embed_tokens": 2 }), "mlx", sink);
  assert.match(unknown[0]!.what, /acts in a tied head too/);
  const read = async (tied?: boolean) =>
    (await readAdapter(await foreign(sink.files), tied === undefined ? {} : { tied })).adapter;
  const [tied, untied, untold] = [await read(true), await read(false), await read()];
  assert.deepEqual([tied, untied, untold].map(({ config }) => config.ensureWeightTying), [true, false, false]);
  assert.deepEqual([tied.report, untied.report], [[], []]);
  // As PEFT saves it: the head has the same factors, transposed, and mlx-lm is given the table's alone.
  assert.deepEqual([...tied.modules.keys()], ["model.embed_tokens", "lm_head"]);
  const [table, head] = [...tied.modules.values()] as [LoraModule, LoraModule];
  const turned = (tensor: StoredTensor) => [...transposeStored(tensor).bytes];
  assert.deepEqual([[...head.loraA.bytes], [...head.loraB.bytes]], [turned(table.loraB), turned(table.loraA)]);
  const again = memorySink();
  const [line] = await writeAdapter(tied, "mlx", again, { tied: true });
  assert.deepEqual([line!.module, line!.what], ["lm_head", "its factors are left out"]);
  assert.deepEqual(readConfig(again.files).lora_parameters.keys, ["model.embed_tokens"]);
  assert.match(untold.report[0]!.what, /acts in the embedding alone/);
});

test("readBaseFacts() tells a tied head by the config, or by a checkpoint that has none", async () => {
  const tie = async (base: string) => (await readBaseFacts(fixtureFolder(`base/${base}`))).tied;
  assert.deepEqual([await tie("llama"), await tie("qwen3"), await tie("gpt2")], [false, true, true]);
  const one = store("F32", 2, 2, () => 1);
  const folder = (config: object, tensors: Readonly<Record<string, StoredTensor>>) =>
    memoryFolder(
      new Map([
        ["config.json", new TextEncoder().encode(JSON.stringify(config))],
        ["model.safetensors", encodeSafetensors(new Map(Object.entries(tensors)))],
      ]),
    );
  const table = { "model.embed_tokens.weight": one };
  const twice = { ...table, "lm_head.weight": one };
  assert.equal((await readBaseFacts(folder({ tie_word_embeddings: true }, twice))).tied, true);
  assert.equal((await readBaseFacts(folder({}, twice))).tied, false);
  assert.equal((await readBaseFacts(folder({}, table))).tied, true);
});

test("GPT-2's layers have mlx-lm's names there, and their own here", async () => {
  const path = "transformer.h.0.attn.c_attn";
  const adapter = await adapterOf({ [path]: 2 });
  const sink = memorySink();
  await writeAdapter(adapter, "mlx", sink, { modelType: "gpt2" });
  const names = [...(await tensorsOf(memorySource(FILE, sink.files.get(FILE)!))).keys()].sort();
  assert.deepEqual(names, ["model.h.0.attn.c_attn.lora_a", "model.h.0.attn.c_attn.lora_b"]);
  assert.deepEqual(readConfig(sink.files).lora_parameters.keys, ["model.h.0.attn.c_attn"]);
  const { adapter: read } = await readAdapter(memoryFolder(sink.files), { modelType: "gpt2", modules: [path] });
  assertSame(read, adapter, "gpt2");
});
