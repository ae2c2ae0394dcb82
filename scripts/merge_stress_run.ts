/** Runs, measures and kills `lora merge` for scripts/merge_stress.ts and its test. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { randomNumbers } from "./merge_stress_model.ts";

const LORA = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
const COPY = fileURLToPath(new URL("./merge_stress_copy.ts", import.meta.url));

/** The program that runs TypeScript. */
export interface StressEngine {
  readonly path: string;
  readonly isDeno: boolean;
}

/** How a process ended. */
export interface StressRun {
  readonly seconds: number;
  /** Most memory that was resident at a time, in bytes (VmHWM); 0 where the system does not tell. */
  readonly peak: number;
  /** Exit status; null after a kill. */
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A merge that can be run again and again. */
export interface StressMerge {
  readonly engine: StressEngine;
  /** The folder with `base` and `adapter`. */
  readonly path: string;
  readonly out: string;
  /** Factor of the adapter. */
  readonly weight: number;
  readonly jobs: number;
}

/** Digests by file name. */
export type Digests = ReadonlyMap<string, string>;

/** Runs the merge, or the first `killAfter` milliseconds of it. */
export async function runMerge(
  { engine, path, out, weight, jobs }: StressMerge,
  killAfter?: number,
): Promise<StressRun> {
  const adapter = `${join(path, "adapter")}=${weight}`;
  const args = ["merge", "--base", join(path, "base"), "--adapter", adapter, "--out", out, "--jobs", String(jobs)];
  return await run(engine, [LORA, ...args, "--json"], killAfter);
}

/** Copies the files of a folder into another one, read, written and flushed as a merge does. */
export async function runCopy(engine: StressEngine, from: string, to: string): Promise<StressRun> {
  return await run(engine, [COPY, from, to]);
}

async function run(engine: StressEngine, args: readonly string[], killAfter?: number): Promise<StressRun> {
  const start = performance.now();
  const flags = engine.isDeno ? ["run", "-A", "--no-check"] : [];
  const child = spawn(engine.path, [...flags, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const texts = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) child[name].on("data", (data) => texts[name] += data);
  let peak = 0;
  const watch = setInterval(() => peak = Math.max(peak, residentPeak(child.pid!)), 20);
  const timer = killAfter === undefined ? undefined : setTimeout(() => child.kill("SIGKILL"), killAfter);
  const status = await new Promise<number | null>((resolve) => child.once("close", resolve));
  clearInterval(watch);
  clearTimeout(timer);
  return { seconds: (performance.now() - start) / 1000, peak, status, ...texts };
}

function residentPeak(pid: number): number {
  try {
    return 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0; // it has just ended, or this is no Linux
  }
}

/** Digests all files of a folder but those whose names say that they are unfinished. */
export function digestFolder(path: string): Digests {
  if (!existsSync(path)) return new Map();
  const names = readdirSync(path).filter((name) => !/\.partial$|\.merged$|^merge\.state\.json$/.test(name));
  return new Map(names.sort().map((name) => [name, digestFile(join(path, name))]));
}

function digestFile(path: string): string {
  const [hash, piece, handle] = [createHash("sha256"), new Uint8Array(1 << 22), openSync(path, "r")];
  for (let read = -1; read !== 0;) {
    read = readSync(handle, piece);
    hash.update(piece.subarray(0, read));
  }
  closeSync(handle);
  return hash.digest("hex");
}

/** What many kills led to. */
export interface KillCount {
  /** Runs that were killed before they had finished. */
  readonly killed: number;
  /** Merges that finished, each after some kills. */
  readonly finished: number;
  /** Runs that went on from files of a killed one. */
  readonly resumed: number;
}

/**
 * Kills merges at random moments, `kills` times, two generations of weights in turn over the same folder, and compares
 * every file that has a final name with the generations' digests after each kill.
 */
export async function killMerges(merges: readonly StressMerge[], kills: number, seed: number): Promise<KillCount> {
  const generations: Digests[] = [];
  let seconds = 0;
  for (const merge of merges) {
    const undisturbed = await runMerge(merge);
    assert.equal(undisturbed.status, 0, undisturbed.stderr);
    seconds = Math.max(seconds, undisturbed.seconds);
    generations.push(digestFolder(merge.out));
  }
  const next = randomNumbers(seed);
  let [killed, finished, resumed] = [0, 0, 0];
  for (let turn = 0; killed < kills; turn++) {
    const merge = merges[turn % merges.length]!;
    for (let ended = false; !ended;) {
      const isLast = killed >= kills;
      const { status, stdout, stderr } = await runMerge(merge, isLast ? undefined : 1000 * seconds * next());
      checkFolder(merge.out, generations);
      if (status === null) killed++;
      else {
        assert.equal(status, 0, stderr);
        assert.deepEqual(digestFolder(merge.out), generations[turn % merges.length], "the digests differ");
        const left = readdirSync(merge.out).filter((name) => /\.(partial|merged)$/.test(name));
        assert.deepEqual(left, [], "something unfinished is left");
        if (/of the interrupted run are kept/.test(stdout)) resumed++;
        finished++;
        ended = true;
      }
    }
  }
  for (const { out } of merges) rmSync(out, { recursive: true, force: true });
  return { killed, finished, resumed };
}

/** Every file with a final name is one of a generation's, and where `config.json` is, all are of one generation. */
function checkFolder(out: string, generations: readonly Digests[]): void {
  const found = digestFolder(out);
  const fits = (digests: Digests) => [...found].every(([name, digest]) => digests.get(name) === digest);
  if (found.has("config.json")) {
    assert.ok(generations.some((digests) => fits(digests) && digests.size === found.size), "a mixed model is left");
  }
  for (const [name, digest] of found) {
    assert.ok(generations.some((digests) => digests.get(name) === digest), `a wrong ${name} is left`);
  }
}
