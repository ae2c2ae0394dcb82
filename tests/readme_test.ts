/** What README.md and CONTRIBUTING.md say is so: their programs run, their commands and files are there. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { findDeno } from "../scripts/engines.ts";

const root = new URL("../", import.meta.url);
const deno = findDeno() ?? "";
const skip = deno ? false : "no deno here";
const pages = ["README.md", "CONTRIBUTING.md"].map((name) => ({
  name,
  text: readFileSync(new URL(name, root), "utf8"),
}));
const readme = pages[0]?.text ?? "";
const manifest = JSON.parse(readFileSync(new URL("deno.json", root), "utf8"));

function matches(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map((match) => match[1] ?? match[0]);
}

function runDeno(...args: string[]): { output: string; status: number | null } {
  const env = { ...process.env, NO_COLOR: "1" };
  const { stdout, stderr, status } = spawnSync(deno, args, { cwd: fileURLToPath(root), encoding: "utf8", env });
  return { output: stdout + stderr, status };
}

test("every TypeScript block of the README runs", { skip }, () => {
  const blocks = matches(readme, /^```ts$/gm).length;
  assert.ok(blocks >= 2);
  const { output, status } = runDeno("test", "-A", "--doc", "README.md");
  assert.equal(status, 0, output);
  assert.match(output, new RegExp(`ok \\| ${blocks} passed`));
});

test("the README's two commands are tasks, and so is every deno task that is named", () => {
  const tasks = pages.flatMap(({ text }) => matches(text, /(?:deno|deno@[\d.]+) task (?:-q )?([a-z]+)/g));
  for (const task of [...tasks, "demo", "test"]) assert.ok(task in manifest.tasks, task);
  assert.match(readme, /^npx -y deno@\S+ task demo\nnpx -y deno@\S+ task test$/m);
});

test("one version of Deno is named everywhere", () => {
  const files = [
    ...pages.map(({ name }) => name),
    ".ci/run",
    ".github/workflows/publish.yml",
    "scripts/setup_runtimes.sh",
  ];
  const versions = files.flatMap((file) =>
    matches(readFileSync(new URL(file, root), "utf8"), /(?:deno@|linux-x64-glibc":")(\d+\.\d+\.\d+)/g)
  );
  assert.ok(versions.length >= 5);
  assert.deepEqual([...new Set(versions)].length, 1, versions.join(", "));
});

test("every lora command of the README is one that lora --help names", { skip }, () => {
  const { output } = runDeno("run", "-A", "src/cli/main.ts", "--help");
  const commands = matches(readme, /^lora ([a-z]+)/gm);
  assert.ok(commands.length >= 4);
  for (const command of commands) assert.match(output, new RegExp(`^ +${command} `, "m"));
});

test("every file and folder that the pages name is there", () => {
  for (const { name, text } of pages) {
    const links = matches(text, /\]\((?!https?:|#)([^)#]+)\)/g);
    const paths = matches(text, /`((?:src|scripts|tests|examples|rust-kernels|\.ci)\/[^`<*\s]*)`/g);
    for (const path of [...links, ...paths]) assert.ok(existsSync(new URL(path, root)), `${name} names ${path}`);
  }
});

test("every entry that the README imports is an export", () => {
  const entries = pages.flatMap(({ text }) => matches(text, /"@lowrank\/lora([^"]*)"/g));
  assert.ok(entries.length >= 4);
  for (const entry of entries) assert.ok(`.${entry}` in manifest.exports, entry);
});
