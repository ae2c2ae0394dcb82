/** Runs, measures and kills `lora merge` for scripts/merge_stress.ts and its test. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  watch as watchFolder,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { randomNumbers } from "./merge_stress_model.ts";

/** Names of what is unfinished, or there only while a merge is. */
const UNFINISHED = /\.(partial|merged|lock)$|^merge\.state\.json$/;
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
  /** Names that came or went in the output folder. */
  readonly events: number;
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

/** When a run is killed: after a time, and not before so many names have come or gone in the output folder. */
export interface Kill {
  readonly ms: number;
  readonly events: number;
}

/** Runs the merge, or as much of it as it can do before it is killed. */
export async function runMerge({ engine, path, out, weight, jobs }: StressMerge, kill?: Kill): Promise<StressRun> {
  const adapter = `${join(path, "adapter")}=${weight}`;
  const args = ["merge", "--base", join(path, "base"), "--adapter", adapter, "--out", out, "--jobs", String(jobs)];
  mkdirSync(out, { recursive: true });
  return await run(engine, [LORA, ...args, "--json"], { out, kill });
}

/** Copies the files of a folder into another one, read, written and flushed as a merge does. */
export async function runCopy(engine: StressEngine, from: string, to: string): Promise<StressRun> {
  return await run(engine, [COPY, from, to]);
}

async function run(
  engine: StressEngine,
  args: readonly string[],
  { out, kill }: { readonly out?: string; readonly kill?: Kill | undefined } = {},
): Promise<StressRun> {
  const start = performance.now();
  const flags = engine.isDeno ? ["run", "-A", "--no-check"] : [];
  const child = spawn(engine.path, [...flags, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const texts = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) child[name].on("data", (data) => texts[name] += data);
  let [peak, events] = [0, 0];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const armed = () => timer = kill && events >= kill.events ? setTimeout(() => child.kill("SIGKILL"), kill.ms) : timer;
  const folder = out
    ? watchFolder(out, (kind) => kind === "rename" && events++ < (kill?.events ?? 0) && armed())
    : null;
  armed();
  const watch = setInterval(() => peak = Math.max(peak, residentPeak(child.pid!)), 20);
  const status = await new Promise<number | null>((resolve) => child.once("close", resolve));
  clearInterval(watch);
  clearTimeout(timer);
  folder?.close();
  return { seconds: (performance.now() - start) / 1000, peak, events, status, ...texts };
}

function residentPeak(pid: number): number {
  try {
    return 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return 0; // it has just ended, or this is no Linux
  }
}

/** Digests of all files of a folder but those whose names say that they are unfinished. */
export class FolderDigests {
  readonly #known: Map<string, string> = new Map();

  /** Reads only what is not the file (place, size, times) that it was before. */
  of(path: string): Digests {
    if (!existsSync(path)) return new Map();
    const names = readdirSync(path).filter((name) => !UNFINISHED.test(name));
    return new Map(names.sort().map((name) => [name, this.#digest(join(path, name))]));
  }

  #digest(path: string): string {
    const { ino, size, mtimeNs } = statSync(path, { bigint: true });
    const key = `${ino} ${size} ${mtimeNs}`;
    const digest = this.#known.get(key) ?? digestFile(path);
    this.#known.set(key, digest);
    return digest;
  }
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
  /** Those of them that were giving the files their final names. */
  readonly naming: number;
  /** Those of them that were writing the journal. */
  readonly noting: number;
  /** Merges that finished, each after some kills. */
  readonly finished: number;
  /** Runs that went on from files of a killed one. */
  readonly resumed: number;
}

/**
 * Kills merges at random, `kills` times, two generations of weights in turn over the same folder, and compares every file
 * that has a final name with the generations' digests after each kill. Every other kill waits for a random change of
 * names in the folder, as files are committed, noted in the journal and given their final names within milliseconds.
 */
export async function killMerges(merges: readonly StressMerge[], kills: number, seed: number): Promise<KillCount> {
  const [folder, generations] = [new FolderDigests(), [] as Digests[]];
  let [seconds, events] = [0, 0];
  for (const merge of merges) {
    const undisturbed = await runMerge(merge);
    assert.equal(undisturbed.status, 0, undisturbed.stderr);
    [seconds, events] = [Math.max(seconds, undisturbed.seconds), Math.max(events, undisturbed.events)];
    generations.push(folder.of(merge.out));
  }
  const next = randomNumbers(seed);
  const [counts, journals] = [{ killed: 0, naming: 0, noting: 0, finished: 0, resumed: 0 }, new Set<string>()];
  for (let turn = 0; counts.killed < kills; turn++) {
    const merge = merges[turn % merges.length]!;
    for (let ended = false; !ended;) {
      const isTimed = counts.killed % 2 === 0;
      const kill = isTimed
        ? { ms: 1000 * seconds * next(), events: 0 }
        : { ms: 3 * next(), events: Math.ceil(events * next()) };
      const { status, stdout, stderr } = await runMerge(merge, counts.killed >= kills ? undefined : kill);
      const found = folder.of(merge.out);
      checkFolder(found, generations);
      ended = status !== null;
      if (!ended) countKill(merge.out, counts, journals);
      else {
        assert.equal(status, 0, stderr);
        checkFinished(merge.out, found, generations[turn % merges.length]!);
        counts.finished++;
        if (/of the interrupted run are kept/.test(stdout)) counts.resumed++;
      }
    }
  }
  for (const { out } of merges) rmSync(out, { recursive: true, force: true });
  return counts;
}

/** What a kill left tells where it hit; unfinished journals stay for an hour. */
function countKill(
  out: string,
  counts: { killed: number; naming: number; noting: number },
  journals: Set<string>,
): void {
  counts.killed++;
  const names = readdirSync(out);
  if (!names.includes("config.json")) counts.naming++;
  const torn = names.filter((name) => /^merge\.state\.json\..*\.partial$/.test(name) && !journals.has(name));
  if (torn.length > 0) counts.noting++;
  for (const name of torn) journals.add(name);
}

function checkFinished(out: string, found: Digests, wanted: Digests): void {
  assert.deepEqual(found, wanted, "the digests differ");
  const left = readdirSync(out).filter((name) => UNFINISHED.test(name));
  assert.deepEqual(left, [], "something unfinished is left");
}

/** Every file with a final name is one of a generation's, and where `config.json` is, all are of one generation. */
function checkFolder(found: Digests, generations: readonly Digests[]): void {
  const fits = (digests: Digests) => [...found].every(([name, digest]) => digests.get(name) === digest);
  if (found.has("config.json")) {
    assert.ok(generations.some((digests) => fits(digests) && digests.size === found.size), "a mixed model is left");
  }
  for (const [name, digest] of found) {
    assert.ok(generations.some((digests) => digests.get(name) === digest), `a wrong ${name} is left`);
  }
}
