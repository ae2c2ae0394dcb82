/** The real model of the tests: SmolLM2-135M-Instruct, and what transformers and PEFT answer with it. */
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";

const MODELS = process.env.LORA_MODELS ??
  join(process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank"), "models");

/** The file. */
export const GGUF: string = join(MODELS, "SmolLM2-135M-Instruct.gguf");

/** Options of a test that needs it. */
export const NEEDS_GGUF: { readonly timeout: number } | { readonly skip: string } = existsSync(GGUF)
  ? { timeout: 600_000 }
  : { skip: `${GGUF} is absent: run scripts/setup_models.sh` };

/** An answer of transformers and PEFT in float32. */
export interface SmolLm2Case {
  readonly key: string;
  readonly text: string;
  readonly promptIds: number[];
  readonly adapter: string | Record<string, number> | null;
  readonly tokens: number[];
  readonly answer: string;
  /** How many of the tokens no rounding can change. */
  readonly safe: number;
}

/** All sixteen. */
export function readCases(): SmolLm2Case[] {
  return JSON.parse(readFileSync(new URL("./fixtures/smollm2/cases.json", import.meta.url), "utf8"));
}
