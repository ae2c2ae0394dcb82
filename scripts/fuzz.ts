/**
 * `deno task fuzz [--cases N] [--seed S] [--target NAME] [--path P]`: mutated adapters, configs, checkpoints, GGUF and
 * pickle files, until one gives anything but a value or a typed error within a second and within the file's size +
 * 64 MiB. tests/fuzz_test.ts runs 20,000 cases of the same targets.
 *
 * A failure is told as its smallest case, whose files are written to a folder, with the seed and the path that repeat
 * it. The cases run in a worker: one that never ends is told too.
 */
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { adapterTargets } from "../tests/fuzz_adapters.ts";
import { FORMATS } from "../tests/fuzz_formats.ts";
import { emptyTally, type Failure, runTarget, type Target } from "../tests/fuzz_run.ts";

interface Plan {
  readonly cases: number;
  readonly seed: number;
  readonly target?: string | undefined;
  readonly path?: string | undefined;
  /** Counts the cases that have begun. */
  readonly begun: Int32Array<SharedArrayBuffer>;
}

/** What the worker says: a line to print, and at last whether all went well. */
type Message = { readonly line: string } | { readonly exitCode: number };

/** Cases from one seed: a run of millions keeps no long history. */
const CHUNK = 10_000;
/** A case of the largest size that is allowed takes less. */
const HANG_MS = 20_000;

if (isMainThread) process.exitCode = await watch();
else parentPort!.postMessage({ exitCode: await work(workerData as Plan) } satisfies Message);

/** Runs the worker, prints what it says, and ends it when one case takes too long. */
async function watch(): Promise<number> {
  const text = { type: "string" } as const;
  const { values } = parseArgs({ options: { cases: text, seed: text, target: text, path: text } });
  const { cases = "100000", seed = Date.now() % 2 ** 31, target, path } = values;
  const begun = new Int32Array(new SharedArrayBuffer(4));
  const plan: Plan = { cases: Number(cases), seed: Number(seed), target, path, begun };
  if (!(plan.cases >= 1) || !Number.isSafeInteger(plan.seed)) {
    process.stderr.write("Cannot fuzz: expected a number of cases, and a whole number as seed\n");
    return 2;
  }
  const worker = new Worker(fileURLToPath(import.meta.url), { workerData: plan });
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  let [last, since] = [0, performance.now()];
  const timer = setInterval(() => {
    const now = Atomics.load(begun, 0);
    if (now !== last) [last, since] = [now, performance.now()];
    else if (performance.now() - since > HANG_MS) resolve(tellHang(plan, last));
  }, 1000);
  worker.on("error", reject).on("message", (message: Message) => {
    if ("line" in message) process.stdout.write(`${message.line}\n`);
    else resolve(message.exitCode);
  });
  const exitCode = await promise;
  clearInterval(timer);
  await worker.terminate();
  return exitCode;
}

function tellHang({ seed }: Plan, begun: number): number {
  process.stdout.write(`case ${begun} of seed ${seed} has not ended after ${HANG_MS / 1000} s\n`);
  return 1;
}

async function work(plan: Plan): Promise<number> {
  const all = [...FORMATS, ...await adapterTargets()];
  const targets = all.filter(({ name }) => plan.target === undefined || name === plan.target);
  if (targets.length === 0) {
    print(`Cannot fuzz "${plan.target}": expected one of ${all.map(({ name }) => name).join(", ")}`);
    return 2;
  }
  const start = performance.now();
  const count = Math.ceil(plan.cases / targets.length);
  for (const target of targets) {
    const failure = await runChunks(counted(target, plan), { ...plan, cases: count });
    if (failure) return tell(target.name, failure);
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(0);
  const resident = (process.memoryUsage().rss / 1e6).toFixed(0);
  print(`${count * targets.length} cases of seed ${plan.seed} in ${seconds} s, 0 failures, ${resident} MB resident`);
  return 0;
}

function counted<E>(target: Target<E>, { begun }: Plan): Target<E> {
  const read: Target<E>["read"] = (files, edits) => {
    Atomics.add(begun, 0, 1);
    return target.read(files, edits);
  };
  return { ...target, read };
}

async function runChunks<E>(target: Target<E>, { cases, seed, path }: Plan): Promise<Failure | null> {
  const tally = emptyTally();
  for (let done = 0; done < cases; done += CHUNK) {
    const chunk = { cases: Math.min(CHUNK, cases - done), seed: seed + done, ...(path !== undefined && { path }) };
    const failure = await runTarget(target, chunk, tally);
    if (failure) return failure;
  }
  const refused = [...tally.refused].sort().map(([name, count]) => `${count} ${name}`).join(", ");
  const most = `slowest ${tally.slowest.toFixed(0)} ms, at most ${tally.largest} bytes beyond the files`;
  print(`${target.name}: ${cases} cases, ${tally.accepted} accepted, ${refused}; ${most}`);
  return null;
}

function tell(target: string, { seed, path, report, files }: Failure): number {
  const folder = mkdtempSync(join(tmpdir(), "lowrank-fuzz-"));
  for (const [name, bytes] of files) writeFileSync(join(folder, name), bytes);
  print(`${report}\nits files are in ${folder}`);
  print(`again: deno task fuzz --cases 1 --target "${target}" --seed ${seed} --path ${path}`);
  return 1;
}

function print(line: string): void {
  parentPort!.postMessage({ line } satisfies Message);
}
