/**
 * Adapters at random, computed by PEFT in float64 and by this package: deno run -A scripts/fuzz_with_peft.ts [--cases N]
 * [--seed S] [--room NAME] [--kind NAME] [--keep FOLDER]. PEFT comes from scripts/setup_peft.sh.
 *
 * A room is what is compared: `alone`, one adapter's answers and merges; `several`, sums and rows of batches; `combined`,
 * add_weighted_adapter(); `targets`, which layers a config adapts. A difference is told with the command that repeats it.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { Backend } from "../src/backend.ts";
import { openBackend } from "../src/open.ts";
import { checkCombined, checkTargets, compareAdapted } from "./fuzz_peft/adapters.ts";
import { type CaseInfo, type Findings, readCase } from "./fuzz_peft/findings.ts";
import { checkModel, checkModels } from "./fuzz_peft/models.ts";
import { checkLayers, checkManyLayers } from "./fuzz_peft/modules.ts";

const ROOMS = ["alone", "several", "combined", "targets"] as const;
const KINDS = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "bert", "bertcls", "modules"] as const;
/** A new process now and then: PEFT leaves memory behind. */
const CASES_PER_WORKER = 300;

/** What we refuse and PEFT takes, as documented. */
const KNOWN = [
  /with init_lora_weights "pissa_niter"/, // a random SVD, which does not come out the same again
  /of rank \d+: expected \d+, by the config/, // PiSSA and OLoRA of a rank that the weight does not have
  /"[^"]*\.lora_fc\..*expected PEFT's names/, // full tensors of a layer that has "lora_" in its path
  /with a lora_alpha that makes its scale/,
  /with new token rows and factors for the head/,
  /with ensure_weight_tying its factors are those of/, // with PiSSA, which PEFT gives the head alone
  /^Cannot combine .* of another fan_in_fan_out/,
  /^Cannot combine .* with (?:modules_to_save|bias)/,
];

type Room = typeof ROOMS[number];
type Reply = { readonly refused?: string; readonly case?: CaseInfo } & {
  readonly adapted?: Readonly<Record<string, readonly number[]>>;
  readonly distance?: number;
};

/** A process with PEFT, which answers one request after the other. */
class Peft {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(packages: string) {
    const script = fileURLToPath(new URL("fuzz_peft/worker.py", import.meta.url));
    const env = { ...process.env, PYTHONPATH: packages, HF_HUB_OFFLINE: "1", OMP_NUM_THREADS: "1" };
    this.#process = spawn("python3", [script], { env, stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout! })[Symbol.asyncIterator]();
  }

  async ask(request: Readonly<Record<string, string>>): Promise<Reply> {
    this.#process.stdin!.write(`${JSON.stringify(request)}\n`);
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`PEFT's process ended at ${JSON.stringify(request)}`);
    return JSON.parse(value);
  }

  end(): void {
    this.#process.stdin!.end();
  }
}

/** What a run found, by room and kind. */
class Tally {
  readonly #counts: Map<string, number> = new Map();

  add(key: string): void {
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }

  print(): void {
    for (const [key, count] of [...this.#counts].sort()) process.stdout.write(`${String(count).padStart(6)} ${key}\n`);
  }
}

async function check(backend: Backend, room: Room, findings: Findings, peft: Peft): Promise<void> {
  const { kind, path } = findings;
  if (room === "combined") return await checkCombined(findings);
  if (room === "several") return await (kind === "modules" ? checkManyLayers : checkModels)(backend, findings);
  const own = room === "targets" ? await checkTargets(findings) : null;
  if (room === "alone") await (kind === "modules" ? checkLayers : checkModel)(backend, findings);
  else if (own === null) return;
  const back = await peft.ask({ room: "read", kind, folder: path });
  // PEFT wants the classifier of a classification in full, which a new adapter has not.
  if (/^load: KeyError: 'base_model.model.(?:classifier|score)/.test(back.refused ?? "") && own) return;
  if (back.refused) findings.problems.push(`PEFT does not read what we save: ${back.refused}`);
  if (own && back.adapted) compareAdapted(findings, own, back.adapted, "saved ");
  if ((back.distance ?? 0) > findings.tolerance) findings.problems.push(`saved is off by ${back.distance}`);
}

async function runCase(
  { backend, peft, tally }: { readonly backend: Backend; readonly peft: Peft; readonly tally: Tally },
  { room, kind, seed, path }: {
    readonly room: Room;
    readonly kind: string;
    readonly seed: string;
    readonly path: string;
  },
): Promise<boolean> {
  const label = `${room} ${kind}`;
  const { refused } = await peft.ask({ room, kind, seed, folder: path });
  if (refused) {
    tally.add(`${label}: refused by PEFT`);
    tally.add(`PEFT: ${refused.replace(/\{.*?\}|'[^']*'|"[^"]*"|[0-9]+/g, "_").slice(0, 110)}`);
    return true;
  }
  const findings = await readCase(path, kind);
  try {
    await check(backend, room, findings, peft);
  } catch (error) {
    const { name, message } = error as Error & { code?: string };
    if (!/^(?:Format|Mismatch|Limit|Numeric|Shape)Error$/.test(name)) findings.problems.push(`${name}: ${message}`);
    tally.add(`${label}: refused by us`);
    tally.add(`we: ${name}: ${message.replace(/"[^"]*"|[0-9.]+/g, "_").slice(0, 170)}`);
    if (process.env["TELL_REFUSALS"] && !KNOWN.some((known) => known.test(message))) {
      process.stdout.write(`${label} ${seed}: ${message}\n`);
    }
    if (findings.problems.length === 0) return true;
  }
  const { problems, info } = findings;
  if ((info.reread ?? 0) > 1e-3) tally.add(`${label}: PEFT reads it otherwise than it trained it`);
  tally.add(`${label}: ${problems.length === 0 ? "as PEFT" : "DIFFERS"}`);
  if (problems.length === 0) return true;
  const config = JSON.stringify(info.config ?? { ...info.configs, ...info.options, weights: info.weights });
  process.stdout.write(`${label}: ${problems.slice(0, 4).join("; ")}\n  ${config}\n`);
  process.stdout.write(`  again: deno run -A scripts/fuzz_with_peft.ts --room ${room} --kind ${kind} --seed ${seed}\n`);
  return false;
}

async function main(): Promise<number> {
  const text = { type: "string" } as const;
  const { values } = parseArgs({ options: { cases: text, seed: text, room: text, kind: text, keep: text } });
  const rooms = ROOMS.filter((room) => (values.room ?? room) === room);
  const kinds = KINDS.filter((kind) => (values.kind ?? kind) === kind);
  const isOne = values.seed !== undefined && values.cases === undefined;
  const cases = isOne ? 1 : Number(values.cases ?? 100);
  const first = values.seed ?? String(Date.now() % 2 ** 31);
  const setup = fileURLToPath(new URL("setup_peft.sh", import.meta.url));
  const packages = execFileSync("bash", [setup], { encoding: "utf8" }).trim();
  const scratch = values.keep ?? mkdtempSync(join(tmpdir(), "lowrank-peft-"));
  const tally = new Tally();
  let failures = 0;
  let [peft, backend] = [new Peft(packages), await openBackend({ prefer: "wasm" })];
  process.stdout.write(`seed ${first}\n`);
  for (let i = 0; i < cases; i++) {
    if (i % CASES_PER_WORKER === CASES_PER_WORKER - 1) {
      peft.end();
      backend.dispose();
      [peft, backend] = [new Peft(packages), await openBackend({ prefer: "wasm" })];
    }
    const [room, kind] = [rooms[i % rooms.length]!, kinds[Math.floor(i / rooms.length) % kinds.length]!];
    const path = join(scratch, "case");
    rmSync(path, { recursive: true, force: true });
    const seed = isOne ? first : `${first}.${i}`;
    if (!await runCase({ backend, peft, tally }, { room, kind, seed, path })) failures++;
  }
  peft.end();
  if (values.keep === undefined) rmSync(scratch, { recursive: true });
  tally.print();
  return failures === 0 ? 0 : 1;
}

process.exitCode = await main();
