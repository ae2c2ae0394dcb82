#!/usr/bin/env -S deno run -A
/**
 * `scripts/merge_stress.ts [OPTION]…`: a checkpoint larger than memory, merged in Node 24 and in Deno.
 *
 * Makes a synthetic bf16 checkpoint in shards and an adapter on all its linear layers, merges them with `lora merge`
 * and compares peak resident memory and throughput with a plain copy of the same bytes in the same engine; then kills
 * merges of a small checkpoint, and of the large one, at random moments and looks for a wrong file. Exits 1 if memory
 * or throughput misses its bound or a file is wrong.
 */
import { readFileSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { findEngines } from "./engines.ts";
import { writeStressModel } from "./merge_stress_model.ts";
import { killMerges, runCopy, runMerge, type StressEngine } from "./merge_stress_run.ts";

const OPTIONS = {
  gigabytes: { type: "string", default: "6" },
  shards: { type: "string", default: "4" },
  rank: { type: "string", default: "16" },
  jobs: { type: "string", default: "1" },
  kills: { type: "string", default: "100" },
  "large-kills": { type: "string", default: "5" },
  engine: { type: "string", multiple: true, default: ["Node 24", "Deno"] as string[] },
  dir: { type: "string", default: join(tmpdir(), "lora-merge-stress") },
  keep: { type: "boolean", default: false },
} as const;

const MAX_MEMORY = 400e6;
const LEAST_RATE = 0.6;
const SMALL = { bytes: 40e6, shards: 8, hidden: 256, rank: 8 };

if (import.meta.main) process.exitCode = await main();

async function main(): Promise<number> {
  const { values } = parseArgs({ options: OPTIONS });
  const [bytes, shards, rank, jobs] = [Number(values.gigabytes) * 1e9, +values.shards, +values.rank, +values.jobs];
  const engines = findEngines().found.filter(({ name }) => values.engine.includes(name));
  rmSync(values.dir, { recursive: true, force: true });
  const [large, small] = [join(values.dir, "large"), join(values.dir, "small")];
  writeStressModel(large, { bytes, shards, hidden: 2048, rank });
  writeStressModel(small, SMALL);
  const { bavail, bsize } = statfsSync(values.dir);
  say(`${values.gigabytes} GB in ${shards} shards, rank ${rank}, ${jobs} jobs; ${gigabytes(bavail * bsize)} free`);
  let failures = 0;
  for (const { name, path, kind, version } of engines) {
    const engine = { path, isDeno: kind === "deno" };
    say(`${name} ${version}, load ${readFileSync("/proc/loadavg", "utf8").split(" ", 1)[0]}`);
    failures += await measure(engine, large, bytes, jobs);
    failures += await kill(engine, small, +values.kills, jobs);
    failures += await kill(engine, large, +values["large-kills"], jobs);
  }
  if (!values.keep) rmSync(values.dir, { recursive: true });
  say(failures === 0 ? "all bounds hold" : `${failures} bounds missed`);
  return failures === 0 ? 0 : 1;
}

/** The copy before and after the merge, so that what others do to the disk meanwhile shows. */
async function measure(engine: StressEngine, path: string, bytes: number, jobs: number): Promise<number> {
  const [copied, out] = [join(path, "copied"), join(path, "out")];
  const copy = async () => {
    const { seconds, status, stderr } = await runCopy(engine, join(path, "base"), copied);
    rmSync(copied, { recursive: true, force: true });
    if (status !== 0) throw new Error(stderr);
    return seconds;
  };
  const before = await copy();
  const merge = await runMerge({ engine, path, out, weight: 1, jobs });
  rmSync(out, { recursive: true, force: true });
  if (merge.status !== 0) throw new Error(merge.stderr);
  const after = await copy();
  const ratio = Math.min(before, after) / merge.seconds;
  say(`  copy ${rate(bytes, before)}, then ${rate(bytes, after)}; merge ${rate(bytes, merge.seconds)}`);
  say(
    `  ${(100 * ratio).toFixed(0)} % of the faster copy (at least 60), peak ${
      (merge.peak / 1e6).toFixed(0)
    } MB (at most 400)`,
  );
  return Number(ratio < LEAST_RATE) + Number(merge.peak > MAX_MEMORY);
}

async function kill(engine: StressEngine, path: string, kills: number, jobs: number): Promise<number> {
  if (kills === 0) return 0;
  const merge = { engine, path, out: join(path, "out"), jobs };
  try {
    const counts = await killMerges([{ ...merge, weight: 1 }, { ...merge, weight: 0.5 }], kills, 1);
    say(
      `  ${counts.killed} kills: no wrong file, ${counts.finished} merges finished, ${counts.resumed} of them resumed`,
    );
    return 0;
  } catch (error) {
    say(`  ${error instanceof Error ? error.message : error}`);
    return 1;
  }
}

function rate(bytes: number, seconds: number): string {
  return `${(bytes / seconds / 1e6).toFixed(0)} MB/s (${seconds.toFixed(1)} s)`;
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(0)} GB`;
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
