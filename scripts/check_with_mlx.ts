/**
 * mlx-lm runs what this package writes, and this package what mlx-lm trains: deno run -A scripts/check_with_mlx.ts. It
 * gets mlx-lm, for Linux or macOS, from PyPI by scripts/setup_mlx.sh.
 *
 * The logits of every adapter of the fixtures that mlx-lm can hold, loaded and fused there, are compared with PEFT's own;
 * those of adapters trained there with what loadModel() gives here.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { readBaseFacts } from "../src/adapter/dialects/base_facts.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { MismatchError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { file, folder } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/load.ts";
import { FIXTURES, type InteropCase, readCases, requireNear, type Rows, Tally } from "./interop_cases.ts";

const BASES = ["llama", "qwen3", "mixtral", "gpt2"] as const;
/** Fusing rounds the update to the type of the factors, before it is added. */
const FUSED_TOLERANCES: Readonly<Record<string, number>> = { "llama-bf16": 1e-2, "llama-f16": 2e-3 };
const PARAMETERS = { rank: 8, scale: 20, dropout: 0 };
const IDS = [[5, 17, 93, 4, 42, 7, 60], [9, 8, 7, 88, 3, 60, 5]];
/** What mlx-lm trains: by its defaults, with DoRA, and with an embedding that is the head too. */
const TRAINED: Readonly<Record<string, { readonly base: string; readonly config: object }>> = {
  "trained-llama": { base: "llama", config: { fine_tune_type: "lora", num_layers: 1, lora_parameters: PARAMETERS } },
  "trained-dora": { base: "llama", config: { fine_tune_type: "dora", num_layers: 2, lora_parameters: PARAMETERS } },
  "trained-gpt2": { base: "gpt2", config: { fine_tune_type: "lora", num_layers: 2, lora_parameters: PARAMETERS } },
  "trained-tied": {
    base: "qwen3",
    config: {
      fine_tune_type: "lora",
      num_layers: 2,
      lora_parameters: { ...PARAMETERS, keys: ["self_attn.q_proj", "model.embed_tokens"] },
    },
  },
};

const scratch = mkdtempSync(join(tmpdir(), "lowrank-mlx-"));
const tally = new Tally();
let status = 1;
try {
  const cases = await writeCases();
  for (const [name, { base, config }] of Object.entries(TRAINED)) {
    writeCase(name, "train.json", { base: join(scratch, base), config, ids: IDS });
  }
  const setup = (name: string) => fileURLToPath(new URL(name, import.meta.url));
  const packages = execFileSync("bash", [setup("setup_mlx.sh")], { encoding: "utf8" }).trim();
  execFileSync("python3", [setup("check_with_mlx.py"), scratch], {
    stdio: "inherit",
    env: { ...process.env, PYTHONPATH: packages, HF_HUB_OFFLINE: "1" },
  });
  for (const one of cases) await tally.run(one.name, () => checkCase(one));
  for (const [name, { base }] of Object.entries(TRAINED)) await tally.run(name, () => checkTrained(name, base));
  status = tally.end("mlx-lm 0.32.2 and this package compute");
} finally {
  rmSync(scratch, { recursive: true });
}
process.exit(status);

function writeCase(name: string, kind: string, value: object): void {
  mkdirSync(join(scratch, name));
  writeFileSync(join(scratch, name, kind), JSON.stringify(value));
}

/** The adapters that mlx-lm can hold: what is refused by name is no case. */
async function writeCases(): Promise<InteropCase[]> {
  for (const base of BASES) await writeBase(base);
  const written: InteropCase[] = [];
  for (const one of await readCases(BASES.map((base) => `base/${base}`))) {
    const adapter = await loadAdapter(folder(join(FIXTURES, one.name, "adapter")), { allowPickle: true });
    const facts = await readBaseFacts(folder(join(FIXTURES, one.base)));
    const sink = memorySink();
    try {
      // What it would lose is the base's own table, which PEFT saves beside the factors of an embedding.
      await writeAdapter(adapter, "mlx", sink, { ...facts, allowLoss: one.name === "llama-embedding" });
    } catch (error) {
      if (error instanceof MismatchError && error.code === "loss") continue;
      throw error;
    }
    writeCase(one.name, "case.json", { base: join(scratch, one.base.slice("base/".length)), ids: one.ids });
    mkdirSync(join(scratch, one.name, "adapter"));
    for (const [name, bytes] of sink.files) writeFileSync(join(scratch, one.name, "adapter", name), bytes);
    written.push(one);
  }
  return written;
}

/** A base of the fixtures under the names that it has on the hub, by which mlx-lm knows it. */
async function writeBase(name: string): Promise<void> {
  const from = join(FIXTURES, "base", name);
  const checkpoint = await openCheckpoint(folder(from));
  const tensors = new Map<string, StoredTensor>();
  for (const tensor of checkpoint.tensors.keys()) {
    for (const [own, stored] of hubTensors(tensor, await checkpoint.read(tensor))) tensors.set(own, stored);
  }
  const config = JSON.parse(readFileSync(join(from, "config.json"), "utf8"));
  const more = { rope_theta: config.rope_parameters?.rope_theta, n_ctx: config.n_positions };
  writeCase(name, "config.json", { ...config, ...more });
  const bytes = encodeSafetensors(tensors, new Map([["format", "pt"]]));
  writeFileSync(join(scratch, name, "model.safetensors"), bytes);
}

/** Experts one by one, w1 and w3 as gate and up; GPT-2's layers without the name of its trunk. */
function hubTensors(name: string, stored: StoredTensor): [string, StoredTensor][] {
  const [, layer, parameter] = /^(.+)\.mlp\.experts\.(gate_up_proj|down_proj)$/.exec(name) ?? [];
  if (layer === undefined) {
    const own = name.replace(/^transformer\./, "").replace(".mlp.gate.weight", ".block_sparse_moe.gate.weight");
    return [[own, stored]];
  }
  const [experts = 0, rows = 0, columns = 0] = stored.shape;
  const parts = parameter === "gate_up_proj" ? ["w1", "w3"] : ["w2"];
  const size = stored.bytes.length / experts / parts.length;
  return Array.from({ length: experts }, (_, e) =>
    parts.map((part, i): [string, StoredTensor] => [
      `${layer}.block_sparse_moe.experts.${e}.${part}.weight`,
      {
        dtype: stored.dtype,
        shape: [rows / parts.length, columns],
        bytes: stored.bytes.slice((e * parts.length + i) * size, (e * parts.length + i + 1) * size),
      },
    ])).flat();
}

async function checkCase({ name, adapted }: InteropCase): Promise<string> {
  const [loaded, fused] = await readLogits(name);
  return `${requireNear(loaded, adapted)}, fused ${requireNear(fused, adapted, FUSED_TOLERANCES[name])}`;
}

async function checkTrained(name: string, base: string): Promise<string> {
  const [want] = await readLogits(name);
  const from = folder(join(FIXTURES, "base", base));
  const { adapter } = await readAdapter(folder(join(scratch, name, "adapter")), await readBaseFacts(from));
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  const model = await loadModel(from, { dtype: "f32" });
  await model.loadAdapter("trained", memoryFolder(sink.files));
  const { values } = await model.forward(IDS, { adapter: "trained" });
  model.dispose();
  return requireNear(rowsOf(values, want[0]!.length), want);
}

async function readLogits(name: string): Promise<[adapted: Rows, fused: Rows]> {
  const failure = join(scratch, name, "error.txt");
  if (existsSync(failure)) throw new Error(readFileSync(failure, "utf8"));
  const source = file(join(scratch, name, "logits.safetensors"));
  const { tensors } = await readSafetensorsHeader(source);
  const read = async (tensor: string) => {
    const info = tensors.get(tensor)!;
    return rowsOf(toFloat32(await readTensor(source, info)), info.shape.at(-1)!);
  };
  return [await read("adapted"), await read("fused")];
}

function rowsOf(values: Float32Array, width: number): Rows {
  return Array.from({ length: values.length / width }, (_, i) => values.subarray(i * width, (i + 1) * width));
}
