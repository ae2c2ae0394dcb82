import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { FLUX_LAYERS } from "../src/adapter/dialects/flux.ts";
import { joinFused, splitFused } from "../src/adapter/dialects/fused.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { folder } from "../src/fs/mod.ts";
import { lora } from "./cli_support.ts";
import { assertSame, deltaOf, peftFiles, store } from "./dialects_support.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";
import { random } from "./values.ts";

const QKV = { whole: "*.qkv_proj", parts: ["*.q_proj", "*.k_proj", "*.v_proj"] };

interface Spec {
  readonly rank: number;
  readonly rows: number;
  readonly columns?: number;
}

/** An adapter of these modules. */
async function make(
  modules: Record<string, Spec>,
  config: Record<string, unknown> = {},
  dtype = "BF16",
): Promise<Adapter> {
  const next = random(Object.keys(modules).length);
  const tensors = new Map<string, StoredTensor>();
  for (const [name, { rank, rows, columns = 8 }] of Object.entries(modules)) {
    const key = `base_model.model.${name}.lora_`;
    tensors.set(`${key}A.weight`, store(dtype, rank, columns, next)).set(
      `${key}B.weight`,
      store(dtype, rows, rank, next),
    );
    if (config.use_dora) tensors.set(`${key}magnitude_vector`, { ...store(dtype, 1, rows, next), shape: [rows] });
  }
  const ranks = Object.fromEntries(
    Object.entries(modules).map(([name, { rank }]) => [`^${name.replaceAll(".", "\\.")}`, rank]),
  );
  return await loadAdapter(peftFiles({ r: 2, lora_alpha: 3, rank_pattern: ranks, ...config }, tensors));
}

function flat(adapter: Adapter, name: string): number[] {
  return [...deltaOf(adapter.modules.get(name)!)];
}

test("splitFused() and joinFused() undo each other bit for bit: updates, magnitudes, scales", async () => {
  for (const config of [{}, { use_rslora: true }, { use_dora: true }]) {
    const whole = await make({ "a.0.qkv_proj": { rank: 2, rows: 12 }, "a.0.o_proj": { rank: 3, rows: 4 } }, config);
    const split = await splitFused(whole, [QKV], { heads: 4, kvHeads: 1 });
    const rows = Array.from(split.modules.values(), ({ name, outFeatures }) => [name, outFeatures]);
    assert.deepEqual(rows.sort(), [["a.0.k_proj", 2], ["a.0.o_proj", 4], ["a.0.q_proj", 8], ["a.0.v_proj", 2]]);
    const parts = QKV.parts.flatMap((part) => flat(split, part.replace("*", "a.0")));
    assert.deepEqual(parts, flat(whole, "a.0.qkv_proj"));
    assertSame(await joinFused(split, [QKV]), whole, JSON.stringify(config));
  }
});

test("joinFused() of parts with factors of their own is exact in the summed rank, other scales are folded", async () => {
  const names = {
    "a.q_proj": { rank: 2, rows: 4 },
    "a.k_proj": { rank: 1, rows: 4 },
    "a.v_proj": { rank: 2, rows: 4 },
  };
  for (const [config, dtype] of [[{}, "F32"], [{ alpha_pattern: { k_proj: 1.5 } }, "BF16"]] as const) {
    const parts = await make(names, config, dtype);
    const joined = await joinFused(parts, [QKV]);
    const { rank } = joined.modules.get("a.qkv_proj")!;
    assert.equal(rank, 5);
    const wanted = Object.keys(names).flatMap((name) => flat(parts, name));
    const difference = flat(joined, "a.qkv_proj").map((value, i) => value - wanted[i]!);
    assert.ok(Math.hypot(...difference) < 6e-8 * Math.hypot(...wanted), `${Math.hypot(...difference)}`);
    assert.ok(joined.report.some(({ module, what }) => module === "a.qkv_proj" && what.includes("rank 5")));
  }
});

test("Flux goes from sd-scripts to diffusers and back with every bit", async () => {
  const modules = {
    "double_blocks.0.img_attn.qkv": { rank: 2, rows: 24 },
    "double_blocks.0.txt_attn.proj": { rank: 2, rows: 8 },
    "double_blocks.1.img_mod.lin": { rank: 2, rows: 48 },
    "single_blocks.3.linear1": { rank: 3, rows: 3 * 8 + 32 },
    "single_blocks.3.linear2": { rank: 2, rows: 8, columns: 40 },
  };
  const original = await make(modules);
  const kohya = memorySink();
  await writeAdapter(original, "kohya", kohya);
  const { adapter } = await readAdapter(memoryFolder(kohya.files));
  const split = await splitFused(adapter, FLUX_LAYERS);
  const names = [...split.modules.keys()];
  assert.equal(names.length, 3 + 1 + 1 + 4 + 1);
  assert.ok(
    names.includes("single_transformer_blocks.3.proj_mlp") && names.includes("transformer_blocks.1.norm1.linear"),
  );
  assert.equal(split.modules.get("single_transformer_blocks.3.proj_mlp")!.outFeatures, 32);
  const diffusers = memorySink();
  await writeAdapter(split, "diffusers", diffusers);
  const back = (await readAdapter(memoryFolder(diffusers.files))).adapter;
  assertSame(await joinFused(back, FLUX_LAYERS), original, "flux");
});

test("splitFused() and joinFused() refuse what does not fit, by module", async () => {
  const whole = await make({ "a.qkv_proj": { rank: 2, rows: 10 } });
  await assert.rejects(splitFused(whole, [QKV]), { name: "MismatchError", tensor: "a.qkv_proj" });
  await assert.rejects(splitFused(whole, [{ ...QKV, restLast: true }]), {
    name: "MismatchError",
    tensor: "a.qkv_proj",
  });
  const lone = await make({ "a.q_proj": { rank: 2, rows: 4 } });
  await assert.rejects(joinFused(lone, [QKV]), { name: "MismatchError", missing: ["*.k_proj", "*.v_proj"] });
  const other = await make({
    "a.q_proj": { rank: 2, rows: 4 },
    "a.k_proj": { rank: 2, rows: 4, columns: 6 },
    "a.v_proj": { rank: 2, rows: 4 },
  });
  await assert.rejects(joinFused(other, [QKV]), { name: "MismatchError", tensor: "a.k_proj" });
});

test("lora convert splits and joins", async () => {
  await inTemporaryFolder(async (path) => {
    const [whole, parts, back] = ["whole", "parts", "back"].map((name) => join(path, name)) as [string, string, string];
    const adapter = await make({ "a.qkv_proj": { rank: 2, rows: 12 } });
    await saveAdapter(adapter, folder(whole));
    const layers = "*.qkv_proj=*.q_proj,*.k_proj,*.v_proj";
    const ended = await lora("convert", whole, "--to", "peft", "--out", parts, "--split", layers);
    assert.equal(ended.status, 0, ended.stderr);
    assert.equal((await loadAdapter(folder(parts))).modules.size, 3);
    assert.equal((await lora("convert", parts, "--to", "peft", "--out", back, "--join", layers)).status, 0);
    assertSame(await loadAdapter(folder(back)), adapter, "cli");
    for (const wrong of [["--split", "qkv"], ["--join", "*.a=b"], ["--merged", "c_attn=1,2"]]) {
      assert.equal((await lora("convert", whole, "--to", "peft", "--out", back, ...wrong)).status, 2, wrong.join(" "));
    }
  });
});
