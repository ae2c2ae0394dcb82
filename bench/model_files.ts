/** The files that all engines run: one model, its other formats, and one adapter. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { memorySink } from "../mod.ts";
import { readBaseFacts, writeAdapter } from "../src/adapter/mod.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { file, folder } from "../src/fs/mod.ts";
import { ggufFolder, type ModelDtype } from "../src/models/mod.ts";
import type { BlockFormat } from "./gguf/blocks.ts";
import { rewriteGguf } from "./gguf/rewrite.ts";

const NAME = "SmolLM2-135M-Instruct";

/** The adapter as PEFT wrote it: rank 8 on q and v. */
export const ADAPTER: string = fileURLToPath(new URL("../tests/fixtures/smollm2/adapters/emotion", import.meta.url));

/** The model as scripts/setup_models.sh leaves it: Q4_1, with a Q8_0 embedding. */
export function modelPath(home: string): string {
  return join(home, "models", `${NAME}.gguf`);
}

/** How our engine stores the Q4_1 file for a variant of the bench: "q4_1" is the file as it stands. */
export function ownDtype(variant: string): ModelDtype {
  return variant === "q4_1" ? "auto" : variant as ModelDtype;
}

/** The model in a format; the file is made the first time and kept in the cache. */
export async function modelIn(home: string, format: string): Promise<string> {
  if (format === "q4_1") return requireModel(home);
  const from = readFileSync(requireModel(home));
  return await made(home, `${NAME}-${format}.gguf`, async () => await rewriteGguf(from, format as BlockFormat));
}

/** The adapter as llama.cpp reads it. */
export async function adapterGguf(home: string): Promise<string> {
  return await made(home, "emotion.gguf", async () => {
    const adapter = await loadAdapter(folder(ADAPTER));
    const sink = memorySink();
    await writeAdapter(adapter, "gguf", sink, await readBaseFacts(await ggufFolder(file(requireModel(home)))));
    return [...sink.files.values()][0]!;
  });
}

function requireModel(home: string): string {
  const path = modelPath(home);
  if (existsSync(path)) return path;
  throw new Error("there is no model: bash scripts/setup_models.sh gets it");
}

async function made(home: string, name: string, make: () => Promise<Uint8Array>): Promise<string> {
  const path = join(home, "bench", name);
  if (existsSync(path)) return path;
  mkdirSync(join(home, "bench"), { recursive: true });
  const partial = `${path}.${process.pid}.partial`;
  try {
    writeFileSync(partial, await make());
    renameSync(partial, path);
  } finally {
    rmSync(partial, { force: true });
  }
  return path;
}
