/**
 * `deno task test [FILE…]`: runs every test file under every engine found, one process per file and engine.
 *
 * The last line is `N passed, N failed`, summed over the engines. A test that is skipped or an engine that is not here is
 * named; with `REQUIRE_ALL=1` either is a failure. So is a file whose number of tests differs between engines: Deno
 * passes over an error thrown at top level after the first test, and what it hides shows only in that number.
 */
import { basename } from "node:path";
import { type Engine, findEngines, gpuEnvironment } from "./engines.ts";
import { parseJunit, type TestResult } from "./junit.ts";

/** Tests of the repository and its package, not of the code: one engine runs them once. */
const ONCE = [
  "examples_browser_test.ts",
  "layers_test.ts",
  "package_test.ts",
  "readme_test.ts",
  "runner_test.ts",
  "webgpu_browser_test.ts",
  "webgpu_smollm2_test.ts", // half a minute on a software driver
];
/** Measures how long a start takes: it runs when the others are done. */
const ALONE = "package_test.ts";
const MINUTES_PER_FILE = 15;

interface Job {
  readonly file: string;
  readonly engine: Engine;
}

interface FileRun extends Job {
  readonly results: readonly TestResult[];
  readonly seconds: number;
  /** Set when the process failed without any test that failed. */
  readonly crash: string | null;
}

if (import.meta.main) Deno.exit(await main(Deno.args));

async function main(args: string[]): Promise<number> {
  const requireAll = Deno.env.get("REQUIRE_ALL") === "1";
  const files = args.length > 0 ? args : listTests();
  const { found, missing } = findEngines();
  await installPackages();
  const jobs = files.flatMap((file) => engines(file, found).map((engine) => ({ file, engine })));
  const runs = await runAll(jobs);
  printTable(found, runs);
  const skips = printSkipped(runs);
  const uneven = printUneven(runs);
  for (const name of missing) console.log(`not found: ${name} (bash scripts/setup_runtimes.sh installs it)`);
  const problems = uneven + runs.filter((run) => run.crash !== null).length + (requireAll ? skips + missing.length : 0);
  if (requireAll && skips + missing.length > 0) console.log("REQUIRE_ALL=1: what is skipped or not found has failed");
  const failed = count(runs, "failed") + problems;
  console.log(`${count(runs, "passed")} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

function listTests(): string[] {
  const names = [...Deno.readDirSync("tests")].map((entry) => entry.name).filter((name) => name.endsWith("_test.ts"));
  return names.sort().map((name) => `tests/${name}`);
}

function engines(file: string, found: readonly Engine[]): readonly Engine[] {
  return ONCE.includes(basename(file)) ? found.slice(0, 1) : found;
}

/** Puts the packages of src/text into node_modules, where Node and Bun look. */
async function installPackages(): Promise<void> {
  const { success, stderr } = await new Deno.Command(Deno.execPath(), { args: ["install", "--quiet"] }).output();
  if (!success) throw new Error(`Cannot install the packages of deno.json: ${new TextDecoder().decode(stderr)}`);
}

async function runAll(jobs: readonly Job[]): Promise<FileRun[]> {
  const queue = jobs.filter(({ file }) => basename(file) !== ALONE);
  const runs: FileRun[] = [];
  const width = Math.max(...jobs.map(({ file }) => file.length));
  const worker = async () => {
    for (let job = queue.shift(); job; job = queue.shift()) {
      const { run, output } = await runFile(job);
      runs.push(run);
      console.log(`${run.engine.name.padEnd(8)} ${run.file.padEnd(width)} ${tally(run)}`);
      if (run.crash !== null || count([run], "failed") > 0) console.log(output);
      if (run.crash !== null) console.log(`${run.file} [${run.engine.name}]: ${run.crash}`);
    }
  };
  await Promise.all(Array.from({ length: Math.min(navigator.hardwareConcurrency, 4) }, worker));
  queue.push(...jobs.filter(({ file }) => basename(file) === ALONE));
  await worker();
  const order = (run: FileRun) => jobs.findIndex(({ file, engine }) => file === run.file && engine === run.engine);
  return runs.sort((a, b) => order(a) - order(b));
}

async function runFile({ file, engine }: Job): Promise<{ run: FileRun; output: string }> {
  const report = await Deno.makeTempFile({ suffix: ".xml" });
  await Deno.remove(report); // Bun writes no report when a file does not load
  const started = performance.now();
  const { code, signal, stdout, stderr } = await new Deno.Command(engine.path, {
    args: testArguments(engine, file, report),
    env: { NO_COLOR: "1", ...gpuEnvironment(engine) },
    stdin: "null",
    signal: AbortSignal.timeout(MINUTES_PER_FILE * 60_000),
  }).output();
  const seconds = (performance.now() - started) / 1000;
  const results = parseJunit(await Deno.readTextFile(report).catch(() => ""));
  await Deno.remove(report).catch(() => {});
  const text = new TextDecoder();
  return {
    run: { file, engine, results, seconds, crash: crashOf(code, signal, results) },
    output: text.decode(stdout) + text.decode(stderr),
  };
}

function crashOf(code: number, signal: string | null, results: readonly TestResult[]): string | null {
  if (results.some(({ outcome }) => outcome === "failed")) return null;
  if (code !== 0) return `ended with ${signal ?? `exit code ${code}`}, and no test of it failed`;
  return results.length === 0 ? "has no test" : null;
}

function testArguments(engine: Engine, file: string, report: string): string[] {
  switch (engine.kind) {
    case "deno":
      return ["test", "-A", "--no-check", `--junit-path=${report}`, file];
    case "node": {
      const quiet = ["MODULE_TYPELESS_PACKAGE_JSON", "ExperimentalWarning"].map((name) => `--disable-warning=${name}`);
      const reporters = [["spec", "stdout"], ["junit", report]].flatMap(([reporter, destination]) => [
        `--test-reporter=${reporter}`,
        `--test-reporter-destination=${destination}`,
      ]);
      return [...quiet, "--test", ...reporters, file];
    }
    case "bun": // its own limit of 5 s a test is too short for a real model
      return ["test", "--timeout", "600000", "--reporter=junit", `--reporter-outfile=${report}`, `./${file}`];
  }
}

function count(runs: readonly FileRun[], outcome: TestResult["outcome"]): number {
  return runs.reduce((sum, { results }) => sum + results.filter((result) => result.outcome === outcome).length, 0);
}

function tally(run: FileRun): string {
  const [passed, failed, skipped] = (["passed", "failed", "skipped"] as const).map((outcome) => count([run], outcome));
  const rest = (failed ? `, ${failed} FAILED` : "") + (skipped ? `, ${skipped} skipped` : "");
  return `${String(passed).padStart(4)} passed${rest}  ${run.seconds.toFixed(1)} s`;
}

function printTable(found: readonly Engine[], runs: readonly FileRun[]): void {
  const row = (name: string, cells: readonly (string | number)[]) =>
    console.log(name.padEnd(24) + cells.map((cell) => String(cell).padStart(9)).join(""));
  console.log();
  row("engine", ["files", "passed", "failed", "skipped", "seconds"]);
  for (const engine of found) {
    const own = runs.filter((run) => run.engine === engine);
    const seconds = own.reduce((sum, run) => sum + run.seconds, 0);
    const label = `${engine.name} (${engine.version})`;
    row(label, [own.length, count(own, "passed"), count(own, "failed"), count(own, "skipped"), seconds.toFixed(1)]);
  }
  console.log();
}

/** Names the skipped tests, each once with the engines that skipped it, and counts the skips. */
function printSkipped(runs: readonly FileRun[]): number {
  const skipped = new Map<string, { engines: string[]; reason: string }>();
  for (const { file, engine, results } of runs) {
    for (const { name, outcome, reason } of results) {
      if (outcome !== "skipped") continue;
      const entry = skipped.get(`${file}: ${name}`) ?? { engines: [], reason: "" };
      skipped.set(`${file}: ${name}`, {
        engines: [...entry.engines, engine.name],
        reason: entry.reason || (reason ?? ""),
      });
    }
  }
  for (const [name, { engines, reason }] of skipped) {
    console.log(`skipped: ${name} [${engines.join(", ")}]${reason && reason !== "true" ? `: ${reason}` : ""}`);
  }
  if (skipped.size > 0) {
    console.log("what they need comes from: bash scripts/setup_runtimes.sh && bash scripts/setup_models.sh");
    console.log("WebGPU without a GPU: bash scripts/setup_gpu.sh, then SOFTWARE_GPU=1 deno task test");
  }
  return count(runs, "skipped");
}

/** Names the files that ran another number of tests in one engine than in another, and counts them. */
function printUneven(runs: readonly FileRun[]): number {
  const whole = runs.filter(({ crash }) => crash === null);
  const uneven = [...Map.groupBy(whole, ({ file }) => file)].filter(([, same]) =>
    new Set(same.map(({ results }) => results.length)).size > 1
  );
  for (const [file, same] of uneven) {
    const counts = same.map(({ engine, results }) => `${results.length} in ${engine.name}`).join(", ");
    console.log(`${file} ran a different number of tests: ${counts}`);
  }
  return uneven.length;
}
