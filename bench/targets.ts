/** What this package promises itself, and what a run says about it. */
import { fastest, findFigures, overhead, ownFigure, type Pair, shareOfLimit, speedUp } from "./figures.ts";
import type { Figure, Run, Topic } from "./types.ts";

/** One promise and its measure. */
export interface TargetResult {
  readonly topic: Topic;
  readonly figure: string;
  /** `"≥"` or `"≤"`. */
  readonly sense: "≥" | "≤";
  readonly bound: number;
  readonly unit: "x" | "%" | "ms" | "kB";
  /** Null where the run has no such figure. */
  readonly measured: Pair | null;
  /** By least times for kernels, by medians for models; null where nothing was measured. */
  readonly met: boolean | null;
}

type Draft = Omit<TargetResult, "met"> & { readonly by?: "least" | "median" };

const GEMM = ["512 x 512 x 512", "1024 x 1024 x 1024", "2048 x 2048 x 2048", "128 x 4096 x 4096"];
const GEMV = ["1 x 4096 x 4096", "1 x 4096 x 11008"];
const GEMV_PARTS = { f32: 0.8, bf16: 0.75, int8: 0.75, int4: 0.65 };
const MODEL = "SmolLM2-135M";

/** Judges a run by the promises about the topics that it measured. */
export function judge(run: Run): TargetResult[] {
  const rows = [gemm, gemv, lora, threads, decode, prefill, accuracy, binaries].flatMap((rows) => [...rows(run)]);
  return rows.filter(({ topic }) => run.only.includes(topic)).map(({ by = "least", ...row }) => {
    const value = row.measured?.[by];
    const met = value === undefined || Number.isNaN(value)
      ? null
      : row.sense === "≥"
      ? value >= row.bound
      : value <= row.bound;
    return { ...row, met };
  });
}

function ratio(topic: Topic, figure: string, bound: number, measured: Pair | null): Draft {
  const by = topic === "decode" || topic === "prefill" ? "median" : "least";
  return { topic, figure, sense: "≥", bound, unit: "x", measured, by };
}

function share(topic: Topic, figure: string, bound: number, of: Figure | undefined): Draft {
  return { topic, figure, sense: "≥", bound, unit: "%", measured: of ? shareOfLimit(of) : null };
}

function* gemm(run: Run): Generator<Draft> {
  for (const name of GEMM) {
    const own = ownFigure(run, { topic: "gemm", name, variant: "f32" });
    const peer = (party: string) => findFigures(run, { topic: "gemm", party, name, variant: "f32" })[0];
    yield share("gemm", `GEMM f32 ${name}, of the FMA peak`, 0.92, own);
    yield ratio("gemm", `GEMM f32 ${name}, of tfjs-wasm`, 1.4, speedUp(own, peer("tfjs-wasm")));
    yield ratio("gemm", `GEMM f32 ${name}, of onnxruntime-web`, 1.7, speedUp(own, peer("onnxruntime-web")));
  }
}

function* gemv(run: Run): Generator<Draft> {
  for (const name of GEMV) {
    for (const [variant, bound] of Object.entries(GEMV_PARTS)) {
      yield share(
        "gemv",
        `GEMV ${variant} ${name}, of reading`,
        bound,
        ownFigure(run, { topic: "gemv", name, variant }),
      );
    }
  }
  const shape = { topic: "gemv", name: GEMV[0]! } as const;
  const peers = findFigures(run, { ...shape, party: "onnxruntime-web" }).filter(({ variant }) => /^int4/.test(variant));
  const own = ownFigure(run, { ...shape, variant: "int4" });
  yield ratio("gemv", "GEMV int4, of onnxruntime-web's MatMulNBits", 15, speedUp(own, fastest(peers)));
}

function* threads(run: Run): Generator<Draft> {
  const wanted = { topic: "gemm", name: GEMM[1]!, variant: "f32" } as const;
  const two = ownFigure(run, { ...wanted, threads: 2 });
  yield ratio("gemm", "two threads, GEMM f32 1024³, of one", 1.85, speedUp(two, ownFigure(run, wanted)));
  const prefill = ownModel(run, "prefill", 2);
  const one = prefill && ownFigure(run, { topic: "prefill", variant: prefill.variant });
  yield ratio("prefill", `two threads, prefill${inFormat(prefill)}, of one`, 1.85, speedUp(prefill, one));
  const decode = ownModel(run, "decode", 2);
  yield share("decode", `two threads, decode${inFormat(decode)}, of reading on two`, 0.7, decode);
}

function* lora(run: Run): Generator<Draft> {
  const floor = 2 * 16 * 4096 / 4096 ** 2;
  for (const rows of [1, 128]) {
    const figure = ownFigure(run, { topic: "lora", name: `${rows} x 4096 x 4096`, variant: "f32 r=16" });
    const measured = figure ? overhead(figure) : null;
    yield {
      topic: "lora",
      figure: `LoRA r = 16, 4096², ${rows === 1 ? "1 row" : `${rows} rows`}, added time`,
      sense: "≤",
      bound: floor + 0.01,
      unit: "%",
      measured,
    };
  }
  const many = ownFigure(run, { topic: "lora", variant: "f32 r=16, 8 adapters" });
  const added = many && overhead(many);
  const times = added ? { least: added.least + 1, median: added.median + 1 } : null;
  yield {
    topic: "lora",
    figure: "8 adapters in a batch of 8, of one adapter",
    sense: "≤",
    bound: 1.25,
    unit: "x",
    measured: times,
  };
  const merge = ownFigure(run, { topic: "merge", variant: "f32 r=16" });
  const part = merge && shareOfLimit(merge);
  const measured = part ? { least: 1 / part.least, median: 1 / part.median } : null;
  yield {
    topic: "merge",
    figure: "merge r = 16 into 4096² f32, of its limit",
    sense: "≤",
    bound: 1.3,
    unit: "x",
    measured,
  };
}

/** This package on the model: in the file's own format, or else its fastest. */
function ownModel(run: Run, topic: "decode" | "prefill", threads = 1): Figure | undefined {
  const own = findFigures(run, { topic, party: "lora", threads, engine: "Node 24" })
    .filter(({ variant }) => !variant.endsWith("LoRA"));
  return own.find(({ variant }) => variant === "q4_1") ?? fastest(own);
}

function inFormat(figure: Figure | undefined): string {
  return figure ? ` in ${figure.variant}` : "";
}

function* decode(run: Run): Generator<Draft> {
  yield* againstModel(run, "decode", "node-llama-cpp", /^q4_1$/, { bound: 1.5, threads: [1, 2] });
  yield* againstModel(run, "decode", "onnxruntime-web", /^/, { bound: 3.5, threads: [1] });
  yield* againstModel(run, "decode", "wllama", /^q4_1$/, { bound: 6, threads: [1] });
}

function* prefill(run: Run): Generator<Draft> {
  yield* againstModel(run, "prefill", "node-llama-cpp", /^q4_1$/, { bound: 2, threads: [1, 2] });
  yield* againstModel(run, "prefill", "node-llama-cpp", /^\w+$/, { bound: 0.7, threads: [1, 2] });
  yield* againstModel(run, "prefill", "onnxruntime-web", /^int8$/, { bound: 2, threads: [1] });
  yield* againstModel(run, "prefill", "wllama", /^q4_1$/, { bound: 8, threads: [1] });
}

function* againstModel(
  run: Run,
  topic: "decode" | "prefill",
  party: string,
  variants: RegExp,
  { bound, threads: counts }: { readonly bound: number; readonly threads: readonly number[] },
): Generator<Draft> {
  for (const threads of counts) {
    const own = ownModel(run, topic, threads);
    const peers = findFigures(run, { topic, party, threads, name: MODEL });
    const peer = fastest(peers.filter(({ variant }) => variants.test(variant)));
    const format = peer ? ` ${peer.variant}` : "";
    const figure = `${topic}${inFormat(own)}, ${threads} thread${threads > 1 ? "s" : ""}, of ${party}${format}`;
    yield ratio(topic, figure, bound, speedUp(own, peer));
  }
}

function* accuracy(run: Run): Generator<Draft> {
  for (const variant of ["int8", "q4_1"]) {
    const values = run.facts.find((fact) => fact.topic === "accuracy" && fact.variant === variant)?.values;
    const one = (value: number | undefined): Pair | null =>
      value === undefined ? null : { least: value, median: value };
    const change = one(values && Math.abs(values.change ?? NaN));
    yield {
      topic: "accuracy",
      figure: `${variant}, change of perplexity`,
      sense: "≤",
      bound: 0.005,
      unit: "%",
      measured: change,
    };
    const same = one(values?.sameChoice);
    yield {
      topic: "accuracy",
      figure: `${variant}, same likeliest token`,
      sense: "≥",
      bound: 0.97,
      unit: "%",
      measured: same,
    };
  }
}

function* binaries(run: Run): Generator<Draft> {
  for (const { name, values } of run.facts.filter(({ topic }) => topic === "binary")) {
    const { bytes = NaN, compileMs = NaN, medianCompileMs = NaN } = values;
    const size = { least: bytes / 1024, median: bytes / 1024 };
    const compile = { least: compileMs, median: medianCompileMs };
    yield { topic: "binary", figure: `${name}, size`, sense: "≤", bound: 96, unit: "kB", measured: size };
    yield { topic: "binary", figure: `${name}, compile`, sense: "≤", bound: 3, unit: "ms", measured: compile };
  }
}
