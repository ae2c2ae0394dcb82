/** Runs the `lora` command in the engine that runs the tests. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));

/** The small model of the examples. */
export const TINY: string = fileURLToPath(new URL("../examples/models/tiny", import.meta.url));
/** PEFT's cases. */
export const FIXTURES: string = fileURLToPath(new URL("./fixtures", import.meta.url));

/** How a command ended. */
export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts a script of the repository. */
export function startScript(
  script: string,
  args: readonly string[],
): { readonly child: ChildProcess; readonly ended: Promise<Ended> } {
  const flags = "Deno" in globalThis ? ["run", "-A", "--no-check"] : [];
  const child = spawn(process.execPath, [...flags, script, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const texts = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name]!.setEncoding("utf8").on("data", (text: string) => texts[name] += text);
  }
  const ended = new Promise<Ended>((resolve) => child.once("close", (status) => resolve({ status, ...texts })));
  return { child, ended };
}

/** Starts `lora`. */
export function startLora(...args: string[]): ReturnType<typeof startScript> {
  return startScript(MAIN, args);
}

/** Runs `lora`. */
export function lora(...args: string[]): Promise<Ended> {
  return startLora(...args).ended;
}

/** Runs `lora … --json`, which must succeed. */
export async function loraJson(...args: string[]): Promise<Record<string, unknown>> {
  const { status, stdout, stderr } = await lora(...args, "--json");
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}

/** Not `child.kill()`: Deno then reports the signal as the end, whatever the child's exit code. */
export function kill(child: ChildProcess, signal: "SIGINT" | "SIGKILL"): void {
  process.kill(child.pid!, signal);
}
