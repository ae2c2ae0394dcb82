/** The house keeps its floor plan, and the two checks that say so see what they are made to see. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { findDeno } from "../scripts/engines.ts";
import { checkEdges, checkReached, type Edge, readGraph } from "../scripts/layers.ts";

const deno = findDeno() ?? "";
const skip = deno ? false : "no deno here";
const root = fileURLToPath(new URL("../", import.meta.url));

/** What `deno lint` with the house's plugin says of one file, by rule. */
function lint(path: string, code: string): string[] {
  const folder = mkdtempSync(join(tmpdir(), "lowrank-lint-"));
  try {
    const file = join(folder, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, code);
    const lint = { plugins: [join(root, "scripts/house_lint.ts")], rules: { tags: [] } };
    writeFileSync(join(folder, "deno.json"), JSON.stringify({ lint }));
    const { stdout } = spawnSync(deno, ["lint", "--json", file], { cwd: folder, encoding: "utf8" });
    return (JSON.parse(stdout) as { diagnostics: { code: string }[] }).diagnostics.map(({ code }) => code);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function edge(from: string, to: string, kind: Edge["kind"] = "static"): Edge {
  return { from, to, kind };
}

test("every import of src is in the floor plan, and every file is reached", { skip }, () => {
  const { files, edges } = readGraph();
  assert.ok(files.length > 20 && edges.length > files.length);
  assert.deepEqual([...checkEdges(edges), ...checkReached(files, edges)], []);
});

test("layers refuses an import between rooms that must not meet", () => {
  const wrong = [
    edge("src/wasm/backend.ts", "src/lora/lora_linear.ts"),
    edge("src/wasm/backend.ts", "src/webgpu/handles.ts", "type"),
    edge("src/formats/json.ts", "src/fs/file.ts"),
    edge("mod.ts", "src/models/mod.ts"),
    edge("src/errors.ts", "tests/reference.ts"),
    edge("src/models/load.ts", "npm:@huggingface/jinja"),
    edge("src/attic/old.ts", "src/errors.ts"),
  ];
  for (const one of wrong) assert.equal(checkEdges([one]).length, 1, `${one.from} -> ${one.to}`);
});

test("layers lets models import text by import() and as types, never at load time", () => {
  const [from, to] = ["src/models/load.ts", "src/text/mod.ts"];
  assert.deepEqual(checkEdges([edge(from, to, "dynamic"), edge(from, to, "type")]), []);
  assert.match(checkEdges([edge(from, to)]).join(), /by import\(\) only/);
});

test("layers names the files of a cycle", () => {
  const cycle = [
    edge("src/fs/a.ts", "src/fs/b.ts"),
    edge("src/fs/b.ts", "src/fs/c.ts"),
    edge("src/fs/c.ts", "src/fs/a.ts", "type"),
  ];
  assert.deepEqual(checkEdges(cycle), ["cycle: src/fs/a.ts -> src/fs/b.ts -> src/fs/c.ts -> src/fs/a.ts"]);
});

test("layers names a file that nothing imports", () => {
  assert.equal(checkReached(["mod.ts", "src/forgotten.ts"], []).length, 1);
});

const long = `export function f(): void {\n${"  f();\n".repeat(40)}}\n`;
const LINT_CASES: readonly (readonly [what: string, path: string, code: string, rule: string | null])[] = [
  ["process outside fs/ and cli/", "src/lora/a.ts", "export const f = () => process.pid;", "house/owned-names"],
  ["node: outside fs/ and cli/", "src/lora/a.ts", 'import "node:fs";', "house/owned-names"],
  ["node: inside fs/", "src/fs/a.ts", 'import "node:fs";', null],
  ["a property called process", "src/lora/a.ts", "export const f = (x: { process: 1 }) => x.process;", null],
  ["WebAssembly outside wasm/", "src/lora/a.ts", "export const f = () => WebAssembly.validate;", "house/owned-names"],
  ["WebAssembly inside wasm/", "src/wasm/a.ts", "export const f = () => WebAssembly.validate;", null],
  ["a GPU type outside webgpu/", "src/wasm/a.ts", "export type A = GPUDevice;", "house/owned-names"],
  ["console in src", "src/cli/a.ts", "export const f = () => console.log();", "house/owned-names"],
  ["work at import", "src/lora/a.ts", "f();", "house/quiet-import"],
  ["module-level state", "src/lora/a.ts", "export let a = 1;", "house/quiet-import"],
  [
    "a refusal without a place",
    "src/formats/a.ts",
    'export const f = () => new FormatError("");',
    "house/placed-errors",
  ],
  ["a long function", "src/lora/a.ts", long, "house/size"],
  ["a long file", "tests/a.ts", "// a\n".repeat(301), "house/size"],
  ["six parameters", "src/lora/a.ts", "export function f(a, b, c, d, e, g): void {}", "house/size"],
  ["an enum", "src/lora/a.ts", "export enum A { b }", "house/runs-everywhere"],
  ["using", "tests/a.ts", "function f(): void {\n  using a = f();\n}", "house/runs-everywhere"],
  ["snake_case", "src/lora/a.ts", "export const a_b = 1;", "house/camel-case"],
];

for (const [what, path, code, rule] of LINT_CASES) {
  test(`lint ${rule ? "refuses" : "lets pass"} ${what}`, { skip }, () => {
    assert.deepEqual(lint(path, code), rule ? [rule] : []);
  });
}
