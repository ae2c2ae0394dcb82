/**
 * `deno task layers`: who may import whom. Reads the module graph of every entry from `deno info --json` and refuses an
 * edge between rooms that the table below does not have, a cycle between files, a package outside `text/`, a file of
 * src that no entry reaches, and hand-written Rust that has outgrown its file. What the syntax shows is in house_lint.ts.
 */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { findDeno } from "./engines.ts";

/** One import between two files of the repository, or of an npm package. */
export interface Edge {
  /** Path from the root of the repository. */
  readonly from: string;
  /** The same, or `npm:NAME`. */
  readonly to: string;
  readonly kind: "static" | "dynamic" | "type";
}

interface Room {
  /** Rooms it may import. */
  readonly imports: readonly string[];
  /** Rooms it may import only when they are needed: by `import()`, and their types. */
  readonly defers?: readonly string[];
}

/** Rooms that all others stand on. */
const GROUND = ["backend", "backend_info", "cache", "errors", "packed_cache", "shape", "weight"];

/** The floor plan of src: a room is a folder, or a file that lies in src itself. It has no cycle, so src has none. */
const ROOMS: Readonly<Record<string, Room>> = {
  backend: { imports: [] },
  backend_info: { imports: [] },
  cache: { imports: [] },
  errors: { imports: [] },
  packed_cache: { imports: [] },
  shape: { imports: [] },
  weight: { imports: [] },
  formats: { imports: [] },
  check: { imports: [] },
  check_cache: { imports: [] },
  check_rows: { imports: [] },
  check_sampling: { imports: [] },
  check_weight: { imports: [] },
  wasm: { imports: ["check", "check_cache", "check_rows", "check_sampling", "check_weight"] },
  // quantizes with the kernels of wasm
  webgpu: { imports: ["check", "check_cache", "check_rows", "check_sampling", "check_weight", "wasm"] },
  open: { imports: [], defers: ["wasm", "webgpu"] },
  fs: { imports: ["formats"] },
  text: { imports: ["formats"] },
  lora: { imports: ["formats"] },
  adapter: { imports: ["formats"] },
  checkpoint: { imports: ["formats", "adapter", "open"] },
  models: { imports: ["formats", "adapter", "check_cache", "lora", "open"], defers: ["text"] },
  mod: { imports: ["formats", "adapter", "lora", "checkpoint", "open"] },
  cli: { imports: ["formats", "adapter", "lora", "checkpoint", "open", "wasm", "fs", "text", "models", "mod"] },
};

const MAX_RUST_LINES = 300;
const MAX_RUST_FUNCTION_LINES = 40;
const MAX_MICROKERNEL_LINES = 80;

const ROOT = new URL("../", import.meta.url);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { files, edges } = readGraph();
  const problems = [...checkEdges(edges), ...checkReached(files, edges), ...checkRust()];
  for (const problem of problems) process.stderr.write(`${problem}\n`);
  process.stdout.write(`layers: ${files.length} files, ${edges.length} imports, ${problems.length} problems\n`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}

/** The edges that the floor plan does not have, and the cycles between files. */
export function checkEdges(edges: readonly Edge[]): string[] {
  return [...edges.flatMap((edge) => checkEdge(edge) ?? []), ...findCycles(edges)];
}

function checkEdge({ from, to, kind }: Edge): string | null {
  const room = roomOf(from);
  const plan = ROOMS[room];
  if (!plan) return `${from}: "${room}" is no room of the floor plan in scripts/layers.ts`;
  if (to.startsWith("npm:")) return room === "text" ? null : `${from} imports ${to}: only text/ has dependencies`;
  if (!isSource(to)) return `${from} imports ${to}: src imports only src`;
  const other = roomOf(to);
  if (other === room || GROUND.includes(other) || plan.imports.includes(other)) return null;
  if (!plan.defers?.includes(other)) return `${from} imports ${to}: ${room} may not import ${other}`;
  return kind === "static"
    ? `${from} imports ${to}: ${room} may import ${other} by import() only, and its types`
    : null;
}

/** Files of src that are in no edge: nothing imports them and they are no entry. */
export function checkReached(files: readonly string[], edges: readonly Edge[]): string[] {
  const reached = new Set([...Object.values(readExports()), ...edges.map(({ to }) => to)]);
  return files.filter((file) => !reached.has(file)).map((file) => `${file}: no entry of deno.json reaches it`);
}

function isSource(path: string): boolean {
  return path === "mod.ts" || path.startsWith("src/");
}

function roomOf(path: string): string {
  return path === "mod.ts" ? "mod" : (path.split("/")[1] ?? path).replace(/\.ts$/, "");
}

function findCycles(edges: readonly Edge[]): string[] {
  const next = Map.groupBy(edges.filter(({ kind }) => kind !== "dynamic"), ({ from }) => from);
  const done = new Set<string>();
  const cycles: string[] = [];
  const visit = (file: string, path: readonly string[]): void => {
    if (path.includes(file)) cycles.push(`cycle: ${[...path.slice(path.indexOf(file)), file].join(" -> ")}`);
    if (done.has(file)) return;
    done.add(file);
    for (const { to } of next.get(file) ?? []) visit(to, [...path, file]);
  };
  for (const file of next.keys()) visit(file, []);
  return cycles;
}

function readExports(): Record<string, string> {
  const { exports } = JSON.parse(readFileSync(new URL("deno.json", ROOT), "utf8")) as {
    exports: Record<string, string>;
  };
  return Object.fromEntries(Object.entries(exports).map(([name, path]) => [name, path.replace("./", "")]));
}

/** All files of src, and the imports among the modules that the entries reach. */
export function readGraph(): { files: string[]; edges: Edge[] } {
  const deno = findDeno();
  if (deno === null) throw new Error("Cannot read the module graph: no deno on this machine");
  const edges = new Map<string, Edge>();
  for (const entry of Object.values(readExports()).filter((path) => path.endsWith(".ts"))) {
    const output = execFileSync(deno, ["info", "--json", entry], { cwd: ROOT, encoding: "utf8", maxBuffer: 1 << 26 });
    for (const edge of parseGraph(JSON.parse(output) as Graph)) edges.set(JSON.stringify(edge), edge);
  }
  const files = readdirSync(new URL("src", ROOT), { recursive: true, encoding: "utf8" }).filter((file) =>
    file.endsWith(".ts")
  );
  return { files: ["mod.ts", ...files.map((file) => `src/${file.replaceAll("\\", "/")}`)], edges: [...edges.values()] };
}

interface Graph {
  readonly modules: readonly {
    readonly specifier: string;
    readonly dependencies?: readonly {
      readonly code?: { readonly specifier?: string };
      readonly type?: { readonly specifier?: string };
      readonly isDynamic?: boolean;
    }[];
  }[];
}

function* parseGraph({ modules }: Graph): Generator<Edge> {
  for (const { specifier, dependencies = [] } of modules) {
    if (!specifier.startsWith("file:") || specifier.includes("/node_modules/")) continue;
    for (const { code, type, isDynamic } of dependencies) {
      const to = code?.specifier ?? type?.specifier;
      if (to === undefined || to.startsWith("node:")) continue; // house_lint.ts has node:
      yield { from: fromRoot(specifier), to: fromRoot(to), kind: !code ? "type" : isDynamic ? "dynamic" : "static" };
    }
  }
}

function fromRoot(specifier: string): string {
  return specifier.replace(pathToFileURL(fileURLToPath(ROOT)).href, "");
}

/** Rust files and functions that are too long; rustfmt indents a function's last brace as its first line. */
function checkRust(): string[] {
  const folder = new URL("rust-kernels/src/", ROOT);
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".rs"));
  return files.flatMap((file) => {
    const lines = readFileSync(new URL(file, folder), "utf8").trimEnd().split("\n");
    const limit = /^tile/.test(file) ? MAX_MICROKERNEL_LINES : MAX_RUST_FUNCTION_LINES;
    const problems = lines.length > MAX_RUST_LINES
      ? [`rust-kernels/src/${file}: ${lines.length} lines, ${MAX_RUST_LINES} at most`]
      : [];
    lines.forEach((line, first) => {
      const [, indent, name] =
        /^( *)(?:pub(?:\([a-z]+\))? )?(?:const )?(?:unsafe )?(?:extern "C" )?fn (\w+)/.exec(line) ?? [];
      const length = indent === undefined ? 0 : lines.indexOf(`${indent}}`, first) - first + 1;
      if (length > limit) problems.push(`rust-kernels/src/${file}: ${name} has ${length} lines, ${limit} at most`);
    });
    return problems;
  });
}
