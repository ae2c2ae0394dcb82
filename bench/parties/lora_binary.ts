/** Size and compile time of each WebAssembly binary. */
import { readdirSync, readFileSync } from "node:fs";
import { median } from "../../src/cli/bench_timing.ts";
import { engineName, readJob, report } from "../child.ts";

const FOLDER = new URL("../../src/wasm/", import.meta.url);
const ROUNDS = 9;

/** Compiles the bytes with an empty custom section of another name each time: engines keep modules by their bytes. */
function compile(bytes: Uint8Array, round: number): number {
  const name = `round ${round}`;
  const section = [0, name.length + 1, name.length, ...new TextEncoder().encode(name)];
  const unlike = Uint8Array.from([...bytes, ...section]);
  const start = performance.now();
  new WebAssembly.Module(unlike);
  return performance.now() - start;
}

readJob();
report({ kind: "engine", engine: engineName() });
for (const name of readdirSync(FOLDER).filter((name) => name.endsWith(".wasm")).sort()) {
  const bytes = readFileSync(new URL(name, FOLDER));
  const times = Array.from({ length: ROUNDS }, (_, round) => compile(bytes, round));
  const values = { bytes: bytes.length, compileMs: Math.min(...times), medianCompileMs: median(times) };
  report({ kind: "fact", topic: "binary", name, variant: "wasm", values });
}
