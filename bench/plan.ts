/** Which processes a run starts: every party with its own, and one more for each number format of a model. */
import type { Job, Topic } from "./types.ts";

/** What a run is asked for. */
export interface Request {
  readonly quick: boolean;
  readonly only: readonly Topic[];
  readonly home: string;
  readonly scratch: string;
}

type Draft = Pick<Job, "party" | "script" | "topics"> & Partial<Job>;

const KERNELS: readonly Topic[] = ["gemm", "gemv", "lora", "merge"];
const PRODUCTS: readonly Topic[] = ["gemm", "gemv"];
const MODELS: readonly Topic[] = ["decode", "prefill"];

function* kernels(): Generator<Draft> {
  for (const engine of ["Node 24", "Deno", "Bun"] as const) {
    yield { party: "lora", script: "lora_kernels.ts", topics: KERNELS, engine };
    yield { party: "lora", script: "lora_kernels.ts", topics: PRODUCTS, engine, threads: 2 };
  }
  for (const threads of [1, 2]) {
    yield { party: "onnxruntime-web", script: "ort_kernels.ts", topics: ["gemm", "gemv", "lora"], threads };
    yield { party: "numpy", script: "numpy_kernels.py", topics: PRODUCTS, engine: "Python", threads };
  }
  yield { party: "tfjs-wasm", script: "tfjs.ts", topics: PRODUCTS };
  yield { party: "jax-js", script: "jax.ts", topics: PRODUCTS };
  yield { party: "ml-matrix", script: "ml_matrix.ts", topics: PRODUCTS };
}

function* models(): Generator<Draft> {
  const own = { party: "lora", script: "lora_model.ts", topics: MODELS };
  for (const variant of ["q4_1", "f32", "bf16", "int8", "int4", "nf4"]) yield { ...own, variant };
  for (const variant of ["q4_1", "bf16", "int8"]) yield { ...own, variant, threads: 2 };
  for (const engine of ["Deno", "Bun"] as const) {
    for (const variant of ["q4_1", "bf16"]) yield { ...own, variant, engine };
  }
  const native = { party: "node-llama-cpp", script: "llama_cpp.ts", topics: MODELS };
  for (const variant of ["q4_1", "q4_0", "q8_0", "f32"]) yield { ...native, variant };
  for (const variant of ["q4_1", "q4_0", "q8_0"]) yield { ...native, variant, threads: 2 };
  const wllama = { party: "wllama", script: "wllama.ts", topics: MODELS };
  yield { ...wllama, variant: "q4_1" };
  yield { ...wllama, variant: "q4_1", threads: 2 };
  yield { ...wllama, variant: "q4_1 + LoRA" };
  const ort = { party: "onnxruntime-web", script: "ort_model.ts", topics: MODELS };
  for (const variant of ["f32", "int8", "int4"]) yield { ...ort, variant };
  for (const variant of ["f32", "int8"]) yield { ...ort, variant, threads: 2 };
}

function* rest(): Generator<Draft> {
  yield { party: "lora", script: "lora_accuracy.ts", topics: ["accuracy"] };
  yield { party: "lora", script: "lora_binary.ts", topics: ["binary"] };
}

/** What a quick run leaves out: two threads, and formats and engines that no target names. */
function isQuick({ party, script, engine = "Node 24", threads = 1, variant = "" }: Draft): boolean {
  if (threads > 1) return party === "lora" && engine === "Node 24" && variant !== "bf16";
  if (party === "ml-matrix" || (script === "lora_model.ts" && engine !== "Node 24")) return false;
  if (["nf4", "f32"].includes(variant) || variant.endsWith("LoRA")) return false;
  return !(party === "onnxruntime-web" && variant === "int4");
}

/** The jobs of a run, in order of the report. */
export function planJobs({ quick, only, home, scratch }: Request): Job[] {
  return [...kernels(), ...models(), ...rest()].flatMap((draft) => {
    const topics = draft.topics.filter((topic) => only.includes(topic));
    if (topics.length === 0 || (quick && !isQuick(draft))) return [];
    const limit = quick ? 90 : 400;
    return [{ engine: "Node 24", threads: 1, variant: "", quick, limit, home, scratch, ...draft, topics } as const];
  });
}

/** A random order, so that a machine that slows down does not favour who comes first. */
export function shuffle<T>(values: readonly T[], random: () => number = Math.random): T[] {
  const shuffled = [...values];
  for (let last = shuffled.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [shuffled[last], shuffled[other]] = [shuffled[other]!, shuffled[last]!];
  }
  return shuffled;
}
