/**
 * `deno task npm [FOLDER]`: builds the npm tarball into FOLDER (default dist) and prints its path. `deno pack` turns the
 * TypeScript into JavaScript with declarations; esbuild then joins the fifty files of an entry into a few, which takes
 * Node 8 ms to load instead of 36 (CPU time, measured); package.json gets what deno.json has no field for. The same
 * source gives the same bytes.
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { findBinary, findDeno } from "./engines.ts";

const ROOT = fileURLToPath(new URL("../", import.meta.url));
const REPOSITORY = process.env.GITHUB_REPOSITORY ?? "lowrank/lora"; // provenance wants the one that publishes

/** What a bundler makes of an imported `.wasm` is a compiled module. */
const MODULE_TYPES = "./src/wasm/kernels.d.ts";

const MANIFEST = {
  description: "LoRA adapters in any JavaScript runtime: load, swap, mix and merge PEFT adapters on WebAssembly SIMD",
  keywords: ["lora", "peft", "adapter", "llm", "safetensors", "gguf", "wasm", "simd", "inference", "transformers"],
  repository: { type: "git", url: `git+https://github.com/${REPOSITORY}.git` },
  bin: { lora: "./src/cli/main.js" },
  engines: { node: ">=22" },
  sideEffects: false,
  peerDependencies: { webgpu: ">=0.3" },
  peerDependenciesMeta: { webgpu: { optional: true } },
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.stdout.write(`${buildTarball(resolve(process.argv[2] ?? join(ROOT, "dist")))}\n`);
}

/** Builds the tarball into `folder` and returns its path. */
export function buildTarball(folder: string): string {
  const deno = findDeno();
  if (deno === null) throw new Error("Cannot build the npm tarball: no deno on this machine");
  const scratch = mkdtempSync(join(tmpdir(), "lowrank-npm-"));
  try {
    const packed = join(scratch, "packed.tgz");
    run(deno, ["pack", "--no-source-maps", "--allow-dirty", "--quiet", "--output", packed], ROOT);
    run("tar", ["-xzf", packed, "-C", scratch], scratch);
    const root = join(scratch, "package");
    joinModules(root);
    patchManifest(join(root, "package.json"));
    mkdirSync(folder, { recursive: true });
    const output = run("npm", ["pack", "--json", "--pack-destination", folder], root);
    const [{ filename }] = JSON.parse(output) as [{ filename: string }];
    return join(folder, filename);
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/** Replaces the JavaScript of a package by the same entries over shared chunks; what was imported late still is. */
function joinModules(root: string): void {
  const { exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const entries = Object.values(exports as Record<string, { import: string }>).map((entry) => entry.import);
  const options = [
    "--bundle",
    "--splitting",
    "--format=esm",
    "--platform=node",
    "--packages=external",
    "--log-level=error",
  ];
  const names = ["--outbase=.", "--outdir=joined", "--chunk-names=src/chunks/[name]-[hash]"];
  const args = [...entries.filter((path) => path.endsWith(".js")), ...options, ...names];
  const esbuild = findBinary("esbuild");
  if (esbuild) run(esbuild, args, root);
  else run("npx", ["-y", "esbuild@0.28.2", ...args], root);
  for (const file of readdirSync(root, { recursive: true, encoding: "utf8" })) {
    if (file.endsWith(".js") && !file.startsWith("joined")) rmSync(join(root, file));
  }
  cpSync(join(root, "joined"), root, { recursive: true });
  rmSync(join(root, "joined"), { recursive: true });
}

function patchManifest(path: string): void {
  const { name, version, exports, ...rest } = JSON.parse(readFileSync(path, "utf8"));
  for (const [entry, target] of Object.entries(exports as Record<string, unknown>)) {
    if (entry.endsWith(".wasm")) exports[entry] = { types: MODULE_TYPES, default: wasmFile(target) };
  }
  const manifest = { name, version, ...MANIFEST, ...rest, exports: { ...exports, "./package.json": "./package.json" } };
  writeFileSync(path, `${JSON.stringify(manifest, null, 2)}\n`);
  const types = "declare const kernels: WebAssembly.Module;\nexport default kernels;\n";
  writeFileSync(join(dirname(path), MODULE_TYPES), types);
}

function wasmFile(target: unknown): string {
  if (typeof target === "string") return target;
  const { default: file } = target as { default: string };
  return file;
}

function run(command: string, args: string[], cwd: string): string {
  return execFileSync(command, args, {
    cwd,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
    maxBuffer: 1 << 26,
  });
}
