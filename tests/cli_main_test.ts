import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { adapterArguments, adapterMix, parseAdapter } from "../src/cli/arguments.ts";
import { numberOption } from "../src/cli/options.ts";
import { UsageError } from "../src/cli/command.ts";
import { formatProgress } from "../src/cli/progress.ts";
import { formatTable } from "../src/cli/table.ts";
import { formatBytes, formatDuration, oneLine, printable } from "../src/cli/terminal.ts";
import { lora, TINY } from "./cli_support.ts";

const COMMANDS = ["inspect", "merge", "generate", "convert", "combine", "extract", "resize", "compare", "bench"];

test("lora --help names every command and exits 0; lora alone says it on stderr and exits 2", async () => {
  const help = await lora("--help");
  assert.equal(help.status, 0);
  for (const command of COMMANDS) assert.match(help.stdout, new RegExp(`^  ${command} `, "m"));
  const nothing = await lora();
  assert.equal(nothing.status, 2);
  assert.equal(nothing.stdout, "");
  assert.equal(nothing.stderr, help.stdout);
});

test("lora --version tells the manifest's version; lora help COMMAND is its --help", async () => {
  const manifest = JSON.parse(readFileSync(new URL("../deno.json", import.meta.url), "utf8"));
  assert.deepEqual(await lora("--version"), { status: 0, stdout: `${manifest.version}\n`, stderr: "" });
  assert.deepEqual(await lora("help", "merge"), await lora("merge", "--help"));
});

test("every command has --help with its options, in lines that fit 120 columns", async () => {
  const helps = await Promise.all(COMMANDS.map((command) => lora(command, "--help")));
  for (const [index, command] of COMMANDS.entries()) {
    const { status, stdout, stderr } = helps[index]!;
    assert.equal(status, 0, stderr);
    assert.match(stdout, new RegExp(`^Usage: lora ${command} `, "m"));
    assert.match(stdout, /^ {2}--json {2}/m);
    for (const line of stdout.split("\n")) assert.ok(line.length <= 120, line);
  }
});

test("wrong usage exits 2, says what is wanted on stderr, and nothing on stdout", async () => {
  const wrong: [string[], RegExp][] = [
    [["frobnicate"], new RegExp(`Cannot run "frobnicate": one of ${COMMANDS.join(", ")} is wanted`)],
    [["inspect"], /Cannot inspect 0 adapters: one is wanted/],
    [["inspect", "a", "--nope"], /^Cannot read the options: unknown option '--nope'\n/],
    [["merge", "--base", "--out", "o"], /^Cannot read the options: [^\n]*'--base[^\n]*\n/],
    [["merge", "stray"], /^Cannot read the options: unexpected argument 'stray'[^\n]*\n/],
    [["generate", "--model", "m", "--prompt", "x", "--prompt", "y"], /^Cannot answer 2 prompts at once: one --prompt/],
    [
      ["generate", "--model", "m", "--prompt", "x", "--threads", "33"],
      /--threads "33": a whole number from 1 up to 32/,
    ],
    [["inspect", "https://"], /Cannot read "https:\/\/": a whole URL is wanted/],
    [["generate", "--prompt", "x"], /Cannot run without --model/],
    [["generate", "--model", "m", "--prompt", "x", "--dtype", "f7"], /--dtype "f7": one of auto, f32, bf16, /],
    [["generate", "--model", "m", "--prompt", "x", "--cache", "f8"], /--cache "f8": one of f32, f16, int8 is wanted/],
    [["generate", "--model", "m", "--prompt", "x", "--top-p", "1.5"], /--top-p "1\.5": a number above 0 up to 1/],
    [["merge", "--base", "b", "--out", "o"], /adapter/],
  ];
  const answers = await Promise.all(wrong.map(([args]) => lora(...args)));
  for (const [index, [args, message]] of wrong.entries()) {
    const { status, stdout, stderr } = answers[index]!;
    assert.equal(status, 2, `${args}: ${stderr}`);
    assert.equal(stdout, "");
    assert.match(stderr, message);
    assert.match(stderr, /^[^\n]+\nTry: lora (?:\w+ )?--help\n$/);
  }
});

test("a slip of the pen, and a folder or file of another kind, are called what they are", async () => {
  const [base, news] = [`${TINY}/base`, `${TINY}/news`];
  const text = fileURLToPath(new URL("../LICENSE", import.meta.url));
  const slips: [args: string[], status: number, message: RegExp][] = [
    [["inspekt"], 2, /is wanted; is inspect meant\?\n/],
    [["inspect", news, "--jsn"], 2, /^Cannot read the options: [^\n]*'--jsn'[^\n]*; is --json meant\?\n/],
    [["generate", "--model", base, "--max-tokens", "4"], 2, /; is --max-new-tokens meant\?\n/],
    [["merge", "--base", base, "--adaptr", news, "--out", "o"], 2, /; is --adapter meant\?\n/],
    [["compare", news, `${news}=x`], 2, /^Cannot use "x" as the weight of "[^"]*news": a number is wanted\n/],
    [
      ["inspect", base],
      1,
      /^Cannot load an adapter from "base", which holds a model: expected a folder with "adapter_/,
    ],
    [
      ["generate", "--model", news, "--prompt", "x"],
      1,
      /from "news", which holds an adapter: expected its base model\n/,
    ],
    [
      ["merge", "--base", news, "--adapter", news, "--out", "o"],
      1,
      /in "news", which holds an adapter: expected model/,
    ],
    [
      ["convert", text, "--to", "peft", "--out", "o"],
      1,
      /from "LICENSE": expected a file of safetensors, GGUF or torch/,
    ],
  ];
  const answers = await Promise.all(slips.map(([args]) => lora(...args)));
  for (const [index, [args, status, message]] of slips.entries()) {
    const answer = answers[index]!;
    assert.deepEqual([answer.status, answer.stdout], [status, ""], `${args}: ${answer.stderr}`);
    assert.match(answer.stderr, message);
  }
});

test("with --json wrong usage is an error with a code, whoever found it", async () => {
  for (const wrong of [["--nope"], []]) {
    const { status, stdout } = await lora("inspect", ...wrong, "--json");
    const { error } = JSON.parse(stdout);
    assert.deepEqual([status, error.name, error.code], [2, "UsageError", "usage"]);
    assert.match(error.message, /^Cannot [^\n]+$/);
  }
});

test("a failure exits 1 with one line on stderr, and --json describes it on stdout", async () => {
  const { status, stdout, stderr } = await lora("inspect", "/absent/adapter", "--json");
  assert.equal(status, 1);
  assert.match(stderr, /^Cannot [^\n]+\n$/);
  const { error } = JSON.parse(stdout);
  assert.equal(error.message + "\n", stderr);
  assert.equal(typeof error.code, "string");
  assert.match(error.name, /Error$/);
});

test("ADAPTER=WEIGHT splits at the last = before a number", () => {
  const cases: [string, string, number][] = [
    ["emotion", "emotion", 1],
    ["emotion=0.7", "emotion", 0.7],
    ["emotion=-.5e1", "emotion", -5],
    ["a=1/b", "a=1/b", 1],
    ["a=1=2", "a=1", 2],
    ["a=b", "a=b", 1],
    ["=2", "=2", 1],
    ["a=", "a=", 1],
    ["a=Infinity", "a=Infinity", 1],
  ];
  for (const [text, path, weight] of cases) assert.deepEqual(parseAdapter(text), { path, weight }, text);
});

test("adapters are named after their folders, and equal names stay apart", () => {
  const adapters = adapterArguments(["x/emotion/=0.5", "y/emotion", "https://example.com/hub/news?rev=1"]);
  assert.deepEqual(adapterMix(adapters), { emotion: 0.5, "emotion-2": 1, news: 1 });
  assert.ok(adapters[2]?.source instanceof URL);
  assert.deepEqual(adapterArguments(["x/a=2"], false).map(({ name, weight }) => [name, weight]), [["a=2", 1]]);
  assert.equal(adapterMix([]), null);
});

test("numberOption() refuses what is no number within its bounds", () => {
  assert.equal(numberOption(undefined, "x", { min: 0 }), undefined);
  assert.equal(numberOption("0", "x", { min: 0 }), 0);
  assert.equal(numberOption("1e-3", "x", { above: 0 }), 0.001);
  for (const text of ["", " ", "x", "NaN", "Infinity", "-1", "1.5"]) {
    assert.throws(() => numberOption(text, "x", { min: 0, whole: true }), UsageError, text);
  }
  assert.throws(() => numberOption("0", "x", { above: 0 }), /above 0 is wanted/);
});

test("a progress line tells part, bytes, rate and time left, and fits the terminal", () => {
  const state = { loaded: 25_000_000, total: 100_000_000, name: "a\x1b[2Jb" };
  const line = formatProgress("Merging", state, 1000, 120);
  assert.equal(
    line,
    "Merging  ██████░░░░░░░░░░░░░░░░░░ 25%  25.0 MB of 100.0 MB, 25.0 MB/s, 3.0 s left  a\u{fffd}[2Jb",
  );
  assert.equal(formatProgress("Merging", state, 1000, 40).length, 39);
  const resumed = formatProgress("Merging", { ...state, kept: 20_000_000 }, 1000, 120);
  assert.match(resumed, / 25% {2}25\.0 MB of 100\.0 MB, 5\.0 MB\/s, 15\.0 s left /);
  assert.match(formatProgress("Merging", { loaded: 0, total: 0 }, 0, 80), / 0% {2}0 B of 0 B$/);
});

test("tables align their columns, and numbers read as people write them", () => {
  const columns = [{ title: "name" }, { title: "n", align: "right" }] as const;
  assert.equal(
    formatTable(columns, [["a", "1"], ["long name", "12"]]),
    "name        n\na           1\nlong name  12\n",
  );
  assert.equal(formatTable(columns, []), "name  n\n");
  const rows = [["model.layers.a.q", "1"], ["model.layers.b", "2"]] as const;
  assert.equal(formatTable(columns, rows, undefined, 19), formatTable(columns, rows));
  assert.equal(formatTable(columns, rows, undefined, 18), "name  n\n…a.q  1\n…b    2\n");
  assert.equal(formatTable(columns, [["", "1"], [".a", "2"]], undefined, 1), "name  n\n      1\n.a    2\n");
  assert.deepEqual([0, 999, 1000, 98_040_000, 2.5e9].map(formatBytes), ["0 B", "999 B", "1.0 kB", "98.0 MB", "2.5 GB"]);
  assert.deepEqual([1.26, 12.3, 999.9, 61_000, 200_000].map(formatDuration), [
    "1.3 ms",
    "12 ms",
    "1.0 s",
    "61.0 s",
    "3 min 20 s",
  ]);
  assert.equal(printable("a\x1b]0;x\x07\n\tb\x9b"), "a\u{fffd}]0;x\u{fffd}\n\tb\u{fffd}");
  assert.equal(oneLine("a\n\tb\u202ec\u2028"), "a\u{fffd}\u{fffd}b\u{fffd}c\u{fffd}");
});

test("--json escapes what a terminal may obey", async () => {
  const { stdout, stderr } = await lora("inspect", "no\x9bsuch\u202efolder", "--json");
  assert.match(JSON.parse(stdout).error.message, /no\x9bsuch\u202efolder/);
  for (const text of [stdout, stderr]) assert.doesNotMatch(text, /[\x9b\u202e]/);
});
