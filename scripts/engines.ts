/**
 * Finds the JavaScript engines on this machine: the one running, those of `scripts/setup_runtimes.sh`, those on PATH.
 * It uses `node:` modules only, because tests import it and run under every engine.
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import process from "node:process";

/** A JavaScript engine that can run the test files. */
export interface Engine {
  readonly name: "Deno" | "Node 22" | "Node 24" | "Bun";
  readonly kind: "deno" | "node" | "bun";
  readonly path: string;
  readonly version: string;
}

/** The binary called `name` that `setup_runtimes.sh` installed, or else the one on PATH. */
export function findBinary(name: string): string | null {
  const home = process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank");
  const folders = [join(home, "runtimes", "bin"), ...(process.env.PATH ?? "").split(delimiter)];
  return folders.map((folder) => join(folder, name)).find((path) => existsSync(path)) ?? null;
}

/** The Deno to use: the one running this, or else the one found. */
export function findDeno(): string | null {
  return process.versions.deno ? process.execPath : findBinary("deno");
}

/** The engines found, in the order of the table, and the names of those that are not here. */
export function findEngines(): { found: Engine[]; missing: Engine["name"][] } {
  const candidates: [Engine["name"], Engine["kind"], (string | null)[], RegExp][] = [
    ["Deno", "deno", [findDeno()], /^2\./],
    ["Node 22", "node", [findBinary("node22"), findBinary("node")], /^22\.(1[89]|[2-9]\d)\./], // 22.18 runs .ts files
    ["Node 24", "node", [findBinary("node24"), findBinary("node")], /^24\./],
    ["Bun", "bun", [findBinary("bun")], /^1\./],
  ];
  const found: Engine[] = [];
  const missing: Engine["name"][] = [];
  for (const [name, kind, paths, wanted] of candidates) {
    const engine = paths.map((path) => ({ path, version: versionOf(path) })).find(({ version }) =>
      wanted.test(version)
    );
    if (engine?.path) found.push({ name, kind, path: engine.path, version: engine.version });
    else missing.push(name);
  }
  return { found, missing };
}

/**
 * What makes an engine compute WebGPU on the software drivers of `setup_gpu.sh`, when `SOFTWARE_GPU` is set: otherwise
 * it takes what the machine has. Deno runs on lavapipe, Dawn (Node, Bun and Chromium) refuses it and runs on SwiftShader.
 */
export function gpuEnvironment({ kind }: Engine): Record<string, string> {
  if (!process.env.SOFTWARE_GPU) return {};
  const home = join(process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank"), "gpu");
  const driver = kind === "deno"
    ? "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json"
    : "/usr/lib/chromium/vk_swiftshader_icd.json";
  const runtimeFolder = join(home, "xdg");
  mkdirSync(runtimeFolder, { recursive: true, mode: 0o700 });
  return {
    VK_DRIVER_FILES: driver,
    VK_ICD_FILENAMES: driver, // older loaders know only this name
    DENO_WEBGPU_BACKEND: "vulkan", // with a driver that is missing Deno would silently take GL
    XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR ?? runtimeFolder,
    JSRT_WEBGPU: join(home, "node_modules", "webgpu", "index.js"),
    JSRT_PLAYWRIGHT: join(home, "node_modules", "playwright-core", "index.mjs"),
    JSRT_CHROMIUM: "/usr/lib/chromium/chromium",
  };
}

function versionOf(path: string | null): string {
  if (path === null) return "";
  try {
    const output = execFileSync(path, ["--version"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    return /\d+\.\d+\.\d+\S*/.exec(output)?.[0] ?? "";
  } catch {
    return ""; // a binary that cannot say its version is as good as absent
  }
}
