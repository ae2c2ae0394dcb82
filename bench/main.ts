/**
 * `deno task bench`: our kernels, the limits of the silicon and the peers, side by side in one run.
 *
 *   deno task bench                      everything: about twenty minutes
 *   deno task bench --quick              fewer sizes, shorter times: about three minutes
 *   deno task bench --only gemm,gemv     some topics
 *   deno task bench --report             README and charts once more, from the last results
 *
 * A full run keeps its times in bench/results and rewrites bench/README.md and bench/charts; any other one writes all
 * that into --out, by default bench/partial, which git ignores. What is not installed is named as absent.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { formatTable } from "../src/cli/table.ts";
import { isTerminal, paint, print, terminalWidth } from "../src/cli/terminal.ts";
import { drawCharts } from "./charts.ts";
import { readableRate } from "./figures.ts";
import { currentCommit, describeMachine } from "./machine.ts";
import { planJobs, shuffle } from "./plan.ts";
import { MARKERS, replaceFigures, writeFigures } from "./readme.ts";
import { type Listener, runJobs } from "./runner.ts";
import { absentTable, factTables, figureTables, limitRates, type Table, targetTable } from "./tables.ts";
import { type Job, type Run, type Topic, TOPICS } from "./types.ts";

const FOLDER = fileURLToPath(new URL("./", import.meta.url));
const EMPTY = `# A partial run\n\n${MARKERS.join("\n")}\n`;

/** What was asked for on the command line. */
interface Options {
  readonly quick: boolean;
  readonly only: readonly Topic[];
  readonly report: boolean;
  readonly out: string;
}

function readOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: args.filter((arg) => arg !== "--"),
    options: {
      quick: { type: "boolean", default: false },
      report: { type: "boolean", default: false },
      only: { type: "string", default: TOPICS.join() },
      out: { type: "string" },
    },
  });
  const only = values.only.split(",").map((name) => {
    const topic = TOPICS.find((topic) => topic === name.trim());
    if (!topic) throw new TypeError(`Cannot measure "${name}": expected some of ${TOPICS.join(", ")}`);
    return topic;
  });
  const isFull = !values.quick && only.length === TOPICS.length;
  return { ...values, only, out: values.out ?? (isFull || values.report ? FOLDER : join(FOLDER, "partial")) };
}

/** Tells each job and each figure as they come. */
function progress(start: number): Listener {
  const since = () => {
    const seconds = Math.floor((performance.now() - start) / 1000);
    return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  };
  return {
    start({ party, engine, threads, variant, topics }: Job, index, count) {
      const what = [party, variant, engine, threads > 1 ? `${threads} threads` : "", topics.join(" ")].filter(Boolean);
      print(paint("bold", `[${index + 1}/${count}] ${since()}  ${what.join(", ")}`, "stderr") + "\n", "stderr");
    },
    figure(figure) {
      const { median, least, unit } = readableRate(figure);
      const rate = `${least.toFixed(1)} ${unit}, median ${median.toFixed(1)}`;
      print(`    ${figure.topic} ${figure.name} ${figure.variant}: ${rate}\n`, "stderr");
    },
  };
}

async function measure({ quick, only }: Options, signal: AbortSignal): Promise<Run> {
  const start = performance.now();
  const home = process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank");
  const scratch = mkdtempSync(join(tmpdir(), "lora-bench-"));
  try {
    const load = loadavg()[0] ?? 0;
    const jobs = shuffle(planJobs({ quick, only, home, scratch }));
    const collected = await runJobs(jobs, progress(start), signal);
    const seconds = Math.round((performance.now() - start) / 1000);
    const common = { date: new Date().toISOString(), commit: currentCommit(), machine: describeMachine() };
    return { ...common, quick, only, seconds, load, ...collected };
  } finally {
    rmSync(scratch, { recursive: true, force: true, maxRetries: 3 });
  }
}

function lastResults(out: string): { file: string; run: Run } {
  const folder = join(out, "results");
  const file = readdirSync(folder).filter((name) => name.endsWith(".json")).sort().at(-1);
  if (file === undefined) throw new Error(`Cannot report without results: there are none in "${folder}"`);
  return { file, run: JSON.parse(readFileSync(join(folder, file), "utf8")) as Run };
}

function keep(run: Run, out: string): string {
  const file = `${run.date.slice(0, 19).replaceAll(":", "").replace("T", "-")}${run.quick ? "-quick" : ""}.json`;
  mkdirSync(join(out, "results"), { recursive: true });
  // A number of a few digits: more are noise, and triple the file.
  const text = JSON.stringify(run, (_, value) => typeof value === "number" ? Number(value.toPrecision(7)) : value, 1);
  writeFileSync(join(out, "results", file), text + "\n");
  return file;
}

/** Writes README and charts. */
function writeReport(run: Run, file: string, out: string): void {
  const charts = drawCharts(run);
  mkdirSync(join(out, "charts"), { recursive: true });
  for (const [name, svg] of charts) writeFileSync(join(out, "charts", name), svg);
  const path = join(out, "README.md");
  const before = out === FOLDER ? readFileSync(path, "utf8") : EMPTY;
  writeFileSync(path, replaceFigures(before, writeFigures(run, file, [...charts.keys()])));
  // The tables as `deno fmt --check` wants them.
  new Deno.Command(Deno.execPath(), { args: ["fmt", "--quiet", "--no-config", "--line-width=120", path] }).outputSync();
}

function printRun(run: Run): void {
  const width = isTerminal("stdout") ? terminalWidth("stdout") : Infinity;
  const show = ({ heading, columns, rows }: Table) => {
    if (rows.length === 0) return;
    print(`\n${paint("bold", heading)}\n${formatTable(columns, rows, undefined, width)}`);
  };
  for (const { name, best, median } of limitRates(run)) {
    print(`${name}: ${best.toFixed(1)}, median ${median.toFixed(1)}\n`);
  }
  [...figureTables(run), ...factTables(run), absentTable(run), targetTable(run)].forEach(show);
}

async function main(): Promise<void> {
  const options = readOptions(process.argv.slice(2));
  if (options.report) {
    const { file, run } = lastResults(options.out);
    return writeReport(run, file, options.out);
  }
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stop.abort(new Error(signal)));
  const run = await measure(options, stop.signal);
  const file = keep(run, options.out);
  writeReport(run, file, options.out);
  printRun(run);
  print(`\n${join(options.out, "results", file)}\n`, "stderr");
}

await main().catch((error) => {
  print(`${error instanceof Error ? error.message : error}\n`, "stderr");
  process.exitCode = error instanceof Error && error.message === "SIGINT" ? 130 : 1;
});
