#!/usr/bin/env -S deno run -A
/**
 * `scripts/merge_stress.ts [OPTION]…`: a checkpoint larger than memory, merged in Node 24 and in Deno.
 *
 * Makes a synthetic bf16 checkpoint in shards and an adapter on all its linear layers, merges them with `lora merge`,
 * in turns with a plain copy of the same bytes in the same engine, and compares the times; then kills merges of the
 * checkpoint, and of a small one, at random moments and looks for a wrong file. Exits 1 if peak resident memory or
 * throughput misses its bound or a file is wrong.
 */
import { readFileSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { findEngines } from "./engines.ts";
import { writeStressModel } from "./merge_stress_model.ts";
import { killMerges, runCopy, runMerge, type StressEngine, type StressRun } from "./merge_stress_run.ts";

const OPTIONS = {
  gigabytes: { type: "string", default: "6" },
  shards: { type: "string", default: "4" },
  rank: { type: "string", default: "16" },
  jobs: { type: "string", default: "1" },
  rounds: { type: "string", default: "3" },
  kills: { type: "string", default: "100" },
  "small-kills": { type: "string", default: "100" },
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
    failures += await measure({ engine, path: large, bytes, jobs, rounds: +values.rounds });
    failures += await kill(engine, small, +values["small-kills"], jobs);
    failures += await kill(engine, large, +values.kills, jobs);
  }
  if (!values.keep) rmSync(values.dir, { recursive: true });
  say(failures === 0 ? "all bounds hold" : `${failures} bounds missed`);
  return failures === 0 ? 0 : 1;
}

interface Measure {
  readonly engine: StressEngine;
  readonly path: string;
  readonly bytes: number;
  readonly jobs: number;
  readonly rounds: number;
}

/** Copies and merges in turns, as others use the disk too; the median decides. */
async function measure({ engine, path, bytes, jobs, rounds }: Measure): Promise<number> {
  if (rounds === 0) return 0;
  const [copied, out] = [join(path, "copied"), join(path, "out")];
  const [copies, merges] = [[] as StressRun[], [] as StressRun[]];
  const keep = (runs: StressRun[], run: StressRun, path: string) => {
    rmSync(path, { recursive: true, force: true });
    if (run.status !== 0) throw new Error(run.stderr);
    runs.push(run);
  };
  for (let round = 0; round < rounds; round++) {
    keep(copies, await runCopy(engine, join(path, "base"), copied), copied);
    keep(merges, await runMerge({ engine, path, out, weight: 1, jobs }), out);
  }
  const secondsOf = (runs: readonly StressRun[]) => runs.map(({ seconds }) => seconds).sort((a, b) => a - b);
  const [copy, merge] = [secondsOf(copies), secondsOf(merges)];
  const middle = (times: readonly number[]) => (times[(rounds - 1) >> 1]! + times[rounds >> 1]!) / 2;
  const ratio = middle(copy) / middle(merge);
  const peak = Math.max(...merges.map(({ peak }) => peak));
  say(`  copy ${copies.map(({ seconds }) => rate(bytes, seconds)).join(", ")}`);
  say(`  merge ${merges.map(({ seconds }) => rate(bytes, seconds)).join(", ")}`);
  say(
    `  ${percent(ratio)} of the copy's rate by medians (at least 60), ${percent(copy[0]! / merge[0]!)} by best times`,
  );
  say(`  peak ${(peak / 1e6).toFixed(0)} MB (at most 400)`);
  return Number(ratio < LEAST_RATE) + Number(peak > MAX_MEMORY);
}

async function kill(engine: StressEngine, path: string, kills: number, jobs: number): Promise<number> {
  if (kills === 0) return 0;
  const merge = { engine, path, out: join(path, "out"), jobs };
  try {
    const counts = await killMerges([{ ...merge, weight: 1 }, { ...merge, weight: 0.5 }], kills, 1);
    const { killed, naming, noting, finished, resumed } = counts;
    say(
      `  ${killed} kills (${naming} while files got their names, ${noting} in the journal): no wrong file, ` +
        `${finished} merges finished, ${resumed} of them resumed`,
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

function percent(ratio: number): string {
  return `${(100 * ratio).toFixed(0)} %`;
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(0)} GB`;
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
