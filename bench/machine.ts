/** What a run notes of where it ran. */
import { execFileSync } from "node:child_process";
import { cpus, release, totalmem, type } from "node:os";
import { fileURLToPath } from "node:url";
import type { Machine } from "./types.ts";

/** The processor as its maker calls it, with what tells it from others of that name. */
export function describeMachine(): Machine {
  const { length: cores, 0: first } = cpus();
  return {
    cpu: first?.model.trim() ?? "unknown",
    cores,
    memoryGB: Math.round(totalmem() / 2 ** 30),
    system: `${type()} ${release().split("-")[0]}`,
  };
}

/** The commit that is measured; a plus sign says that files were changed since. */
export function currentCommit(): string {
  const git = (...args: string[]) =>
    execFileSync("git", args, { cwd: fileURLToPath(new URL("..", import.meta.url)), encoding: "utf8" }).trim();
  try {
    return git("rev-parse", "--short", "HEAD") + (git("status", "--porcelain", "--", "src", "mod.ts") ? "+" : "");
  } catch {
    return "unknown";
  }
}
