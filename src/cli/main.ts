#!/usr/bin/env node
/**
 * The `lora` command: inspect, merge and run PEFT adapters from a terminal, in Deno, Node and Bun.
 *
 * ```ts
 * import { main } from "@lowrank/lora/cli";
 *
 * const exitCode = await main(["inspect", "examples/models/tiny/emotion", "--json"]);
 * ```
 *
 * @module
 */

import { readFileSync, realpathSync } from "node:fs";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { asUsageError, type Command, meant, UsageError } from "./command.ts";
import { isTerminal, oneLine, print, printJson } from "./terminal.ts";

/** Exit code when the reader of stdout went away. */
const BROKEN_PIPE = 1;

interface Entry {
  readonly summary: string;
  load(): Promise<Command>;
}

const COMMANDS: ReadonlyMap<string, Entry> = new Map<string, Entry>([
  ["inspect", {
    summary: "What is in a PEFT adapter",
    load: async () => (await import("./inspect.ts")).inspect,
  }],
  ["merge", {
    summary: "Fold adapters into a checkpoint, which transformers then loads",
    load: async () => (await import("./merge.ts")).merge,
  }],
  ["generate", {
    summary: "Answer a prompt with a model, as it is or through adapters",
    load: async () => (await import("./generate.ts")).generate,
  }],
  ["convert", {
    summary: "Bring an adapter into the form that another tool reads",
    load: async () => (await import("./convert.ts")).convert,
  }],
  ["combine", {
    summary: "Make one adapter of several, exactly or to a rank",
    load: async () => (await import("./combine.ts")).combine,
  }],
  ["extract", {
    summary: "Make an adapter of what differs between two checkpoints",
    load: async () => (await import("./extract.ts")).extract,
  }],
  ["resize", {
    summary: "Lower the rank of an adapter",
    load: async () => (await import("./resize.ts")).resize,
  }],
  ["compare", {
    summary: "How alike two adapters are, in numbers and as heat maps",
    load: async () => (await import("./compare.ts")).compare,
  }],
  ["bench", {
    summary: "Measure the kernels against what this machine can do",
    load: async () => (await import("./bench.ts")).bench,
  }],
]);

function help(): string {
  const lines = [...COMMANDS].map(([name, { summary }]) => `  ${name.padEnd(10)}${summary}`);
  return `LoRA adapters in any JavaScript runtime.

Usage: lora COMMAND [OPTION]…

${lines.join("\n")}

Every command takes --help, and --json for programs; lora --version tells the version.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C. A failure is one line on stderr;
with --json stdout gets { "error": { name, code, message, file, tensor, field } }.
`;
}

function describe(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { name: "Error", message: String(error) };
  const { code, file, tensor, field } = error as Error & Record<"code" | "file" | "tensor" | "field", unknown>;
  return { name: error.name, code, message: error.message, file, tensor, field };
}

function report(error: unknown, name: string, { json, help }: { json: boolean; help?: string }): number {
  const usage = asUsageError(error, help);
  const told = usage ?? error;
  if (json) printJson({ error: describe(told) });
  const message = oneLine(told instanceof Error ? told.message : String(told));
  print(message + (usage ? `\nTry: ${["lora", name, "--help"].filter(Boolean).join(" ")}` : "") + "\n", "stderr");
  return usage ? 2 : 1;
}

/** The version in the manifest of the package or of the clone. */
function readVersion(): string {
  for (const manifest of ["../../package.json", "../../deno.json"]) {
    try {
      return JSON.parse(readFileSync(new URL(manifest, import.meta.url), "utf8")).version;
    } catch {
      continue;
    }
  }
  return "unknown";
}

/** Waits until all that was printed is written, or its reader known to be gone. */
async function flush(): Promise<void> {
  await new Promise<void>((resolve) => process.stdout.write("", () => resolve()));
  await setImmediate();
}

/** Runs a command; Ctrl-C, a polite kill and a reader that went away abort it, a second Ctrl-C ends the process. */
async function runCommand(command: Command, name: string, args: string[]): Promise<number> {
  const controller = new AbortController();
  let stopped: number | undefined;
  const stop = (code: number) => {
    stopped = code;
    controller.abort(new DOMException("Stopped", "AbortError"));
  };
  const interrupt = () => stop(130);
  const terminate = () => stop(143);
  const broken = (error: Error & { code?: string }) => error.code === "EPIPE" && stop(BROKEN_PIPE);
  process.once("SIGINT", interrupt).once("SIGTERM", terminate);
  process.stdout.on("error", broken);
  try {
    await command.run(args, controller.signal);
    await flush();
    // What came too late to stop it leaves it done; answers that nobody reads are none.
    return stopped === BROKEN_PIPE ? BROKEN_PIPE : 0;
  } catch (error) {
    if (stopped === undefined) return report(error, name, { json: args.includes("--json"), help: command.help });
    // The shell's prompt should not follow half a line.
    if (isTerminal("stderr")) print("\n", "stderr");
    return stopped;
  } finally {
    process.off("SIGINT", interrupt).off("SIGTERM", terminate);
    process.stdout.off("error", broken);
  }
}

/**
 * Runs `lora` with these arguments: answers on stdout, everything else on stderr.
 *
 * @param args The words after `lora`.
 * @returns The exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C (143 by SIGTERM).
 * @example
 * ```ts
 * import { main } from "@lowrank/lora/cli";
 * import assert from "node:assert/strict";
 *
 * assert.equal(await main(["inspect", "examples/models/tiny/emotion"]), 0);
 * ```
 */
export async function main(args: string[]): Promise<number> {
  const [first = "--help", ...rest] = args;
  // `lora help merge` is `lora merge --help`.
  const asksHelp = first === "help" && COMMANDS.has(rest[0] ?? "");
  const name = asksHelp ? rest[0]! : first;
  if (name === "--help" || name === "-h" || name === "help") {
    print(help(), args.length === 0 ? "stderr" : "stdout");
    return args.length === 0 ? 2 : 0;
  }
  if (name === "--version") {
    print(`${readVersion()}\n`);
    return 0;
  }
  const entry = COMMANDS.get(name);
  if (!entry) {
    const names = [...COMMANDS.keys()];
    const error = new UsageError(`Cannot run "${name}": one of ${names.join(", ")} is wanted${meant(name, names)}`);
    return report(error, "", { json: rest.includes("--json") });
  }
  const command = await entry.load();
  if (asksHelp || rest.includes("--help") || rest.includes("-h")) {
    print(command.help);
    return 0;
  }
  return await runCommand(command, name, rest);
}

/** Node before 22.18 has no `import.meta.main`; npm starts the command through a link. */
function isMain(): boolean {
  const told: boolean | undefined = import.meta.main;
  if (told !== undefined) return told;
  const started = process.argv[1];
  return started !== undefined && realpathSync(started) === fileURLToPath(import.meta.url);
}

if (isMain()) {
  main(process.argv.slice(2)).then((code) => {
    process.exitCode = code;
  });
}
