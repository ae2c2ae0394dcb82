/** Runs the jobs one after another, each in a process of its own, and collects what they report. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { findBinary, findEngines } from "../scripts/engines.ts";
import { MARK } from "./child.ts";
import type { Absent, Fact, Figure, Job, Message, Party, Topic } from "./types.ts";

/** What the jobs reported. */
export interface Collected {
  readonly figures: Figure[];
  readonly facts: Fact[];
  readonly absent: Absent[];
}

/** Called before each job, and with each figure. */
export interface Listener {
  start(job: Job, index: number, count: number): void;
  figure(figure: Figure): void;
}

const PARTIES = fileURLToPath(new URL("./parties/", import.meta.url));
const KEPT_ERROR = 300;
const GRACE_MS = 3000;

/** The command of a job, or why there is none. */
function commandOf(job: Job): string[] | Error {
  const script = PARTIES + job.script;
  const pinned = job.party === "node-llama-cpp" && job.threads > 1 && existsSync("/usr/bin/taskset");
  const pin = pinned ? ["/usr/bin/taskset", "-c", Array.from({ length: job.threads }, (_, cpu) => cpu).join()] : [];
  if (job.engine === "Python") {
    const python = findBinary("python3");
    return python ? [python, script] : new Error("there is no python3 on PATH");
  }
  const engine = findEngines().found.find(({ name }) => name === job.engine);
  if (!engine) return new Error(`there is no ${job.engine}: bash scripts/setup_runtimes.sh installs it`);
  const flags = { deno: ["run", "-A", "--no-check", "--quiet"], node: ["--no-warnings"], bun: ["run"] }[engine.kind];
  return [...pin, engine.path, ...flags, script];
}

/** Runs all jobs; what fails becomes an absence. */
export async function runJobs(jobs: readonly Job[], listener: Listener, signal: AbortSignal): Promise<Collected> {
  const collected: Collected = { figures: [], facts: [], absent: [] };
  for (const [index, job] of jobs.entries()) {
    signal.throwIfAborted();
    listener.start(job, index, jobs.length);
    await runJob(job, collected, listener, signal);
  }
  return collected;
}

async function runJob(job: Job, collected: Collected, listener: Listener, signal: AbortSignal): Promise<void> {
  let party: Party = { party: job.party, engine: job.engine, threads: job.threads };
  const reported = new Set<Topic>();
  const giveUp = (error: string) => {
    const topics = job.topics.filter((topic) => !reported.has(topic));
    for (const topic of topics) collected.absent.push({ ...party, topic, variant: job.variant, error });
  };
  const command = commandOf(job);
  if (command instanceof Error) return giveUp(command.message);
  const [path, ...args] = command;
  const env = { ...process.env, TMPDIR: job.scratch };
  // A group of its own: a browser's processes end with the one that started it.
  const child = spawn(path!, [...args, JSON.stringify(job)], {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    env,
  });
  const error = await listen(child, job, signal, (message) => {
    if (message.kind === "engine") {
      const { engine, version } = message;
      party = { ...party, engine, ...(version !== undefined && { version }) };
      return;
    }
    reported.add(message.topic);
    collect(message, party, collected, listener);
  });
  if (error !== null) giveUp(error);
}

function collect(message: Message, party: Party, { figures, facts, absent }: Collected, listener: Listener): void {
  if (message.kind === "engine") return;
  const { kind, ...content } = message;
  if (kind === "figure") {
    const figure = { ...party, ...content } as Figure;
    figures.push(figure);
    listener.figure(figure);
  } else if (kind === "fact") facts.push({ ...party, ...content } as Fact);
  else absent.push({ ...party, ...content } as Absent);
}

/** Passes on the messages until the process has ended; why it failed, or null. */
async function listen(
  child: ChildProcess,
  job: Job,
  signal: AbortSignal,
  take: (message: Message) => void,
): Promise<string | null> {
  let timedOut = false;
  let errors = "";
  const end = () => endGroup(child);
  const timer = setTimeout(() => (timedOut = true, end()), job.limit * 1000);
  signal.addEventListener("abort", end);
  child.stderr!.setEncoding("utf8").on("data", (text: string) => errors = (errors + text).slice(-20_000));
  createInterface({ input: child.stdout! }).on("line", (line) => {
    if (line.startsWith(MARK)) take(JSON.parse(line.slice(MARK.length)) as Message);
  });
  const status = await new Promise<number | null>((resolve) => {
    child.once("error", (error) => (errors += String(error), resolve(-1)));
    child.once("close", resolve);
  });
  clearTimeout(timer);
  signal.removeEventListener("abort", end);
  signal.throwIfAborted();
  if (timedOut) return `ended after ${job.limit} s`;
  return status === 0 ? null : firstError(errors) || `ended with exit code ${status}`;
}

/** Asks it to end, so that a browser can; then it must. */
function endGroup({ pid }: ChildProcess): void {
  const send = (signal: "SIGTERM" | "SIGKILL") => {
    try {
      if (pid !== undefined) process.kill(-pid, signal);
    } catch {
      // It has ended by itself.
    }
  };
  send("SIGTERM");
  setTimeout(() => send("SIGKILL"), GRACE_MS).unref();
}

/** The line of an error's output that names it. */
function firstError(text: string): string {
  const lines = text.split("\n").map((line) => line.trim());
  const named = lines.find((line) => /^(error: )?(Uncaught )?\(?(in promise\) )?\w*Error\b/.test(line)) ??
    lines.find(Boolean);
  return (named ?? "").replaceAll(/\/\S*\/(?=[^/\s]+)/g, "").slice(0, KEPT_ERROR);
}
