import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { drawCharts } from "../bench/charts.ts";
import { encodeBlocks } from "../bench/gguf/blocks.ts";
import { rewriteGguf } from "../bench/gguf/rewrite.ts";
import { speedUp } from "../bench/figures.ts";
import { planJobs, shuffle } from "../bench/plan.ts";
import { MARKERS, replaceFigures, writeFigures } from "../bench/readme.ts";
import { judge } from "../bench/targets.ts";
import type { Figure, Run } from "../bench/types.ts";
import { TOPICS } from "../bench/types.ts";
import { findDeno } from "../scripts/engines.ts";
import { median, summarize, timeInTurns } from "../src/cli/bench_timing.ts";
import { dequantizer } from "../src/formats/gguf_quants.ts";
import { encodeGguf } from "../src/formats/gguf_writer.ts";
import { readGguf, readGgufTensor } from "../src/formats/gguf.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySource } from "../src/formats/memory.ts";

const MAIN = fileURLToPath(new URL("../bench/main.ts", import.meta.url));
const RUN = JSON.parse(readFileSync(new URL("./fixtures/bench_run.json", import.meta.url), "utf8")) as Run;

function verdict(run: Run, figure: string) {
  const found = judge(run).find((row) => row.figure === figure);
  assert.ok(found, `no row "${figure}" among ${judge(run).map((row) => row.figure).join("; ")}`);
  return found;
}

test("judge() compares kernels with their limits and peers by least times", () => {
  const peak = verdict(RUN, "GEMM f32 512 x 512 x 512, of the FMA peak");
  assert.ok(Math.abs(peak.measured!.least - 0.95) < 1e-9); // 100 MFLOP/ms possible, 95 done
  assert.equal(peak.met, true);
  const peer = verdict(RUN, "GEMM f32 512 x 512 x 512, of onnxruntime-web");
  assert.deepEqual(peer.measured, { least: 1.6, median: 2 });
  assert.equal(peer.met, false);
});

test("speedUp() compares times in terms of a limit that both took turns with", () => {
  const [own] = RUN.figures;
  const limit = own!.limits![0]!;
  const busy = (factor: number): Figure => ({
    ...own!,
    times: summarize(own!.times.batches.map((ms) => ms * factor)),
    limits: [{ ...limit, times: summarize(limit.times.batches.map((ms) => ms * 4)) }],
  });
  assert.deepEqual(speedUp(own, busy(4)), { least: 1, median: 1 });
  assert.deepEqual(speedUp(own, busy(8)), { least: 2, median: 2 });
  assert.deepEqual(speedUp(own, { ...busy(8), limits: [] }), { least: 8, median: 8 });
});

test("judge() compares models by medians and takes the file's own format", () => {
  const native = verdict(RUN, "decode in q4_1, 1 thread, of node-llama-cpp q4_1");
  assert.deepEqual(native.measured, { least: 1.25, median: 1.5 });
  assert.equal(native.met, true);
});

test("judge() says of what was not measured neither met nor missed, and leaves out topics not asked for", () => {
  assert.equal(verdict(RUN, "GEMM f32 512 x 512 x 512, of tfjs-wasm").met, null);
  const rows = judge({ ...RUN, only: ["decode"] });
  assert.ok(rows.length > 0 && rows.every(({ topic }) => topic === "decode"));
});

test("judge() holds an adapter to its FLOP and one point more", () => {
  const slow = RUN.figures.map((figure): Figure =>
    figure.topic === "lora" ? { ...figure, times: { least: 1.1, batches: [1.1] } } : figure
  );
  const name = "LoRA r = 16, 4096², 1 row, added time";
  assert.equal(verdict(RUN, name).met, true);
  assert.equal(verdict({ ...RUN, figures: slow }, name).met, false);
});

test("replaceFigures() changes what is between the markers alone", () => {
  const before = `# Title\n\nby hand\n\n${MARKERS[0]}\nold\n${MARKERS[1]}\n\nnotes | stay\n`;
  const after = replaceFigures(before, "new");
  assert.equal(after, `# Title\n\nby hand\n\n${MARKERS[0]}\n\nnew\n\n${MARKERS[1]}\n\nnotes | stay\n`);
  assert.equal(replaceFigures(after, "new"), after);
  assert.throws(() => replaceFigures("# Title\n", "new"), /without its markers/);
  assert.throws(() => replaceFigures(before + before, "new"), /without its markers/);
});

test("bench/README.md has its markers", () => {
  const readme = readFileSync(new URL("../bench/README.md", import.meta.url), "utf8");
  assert.ok(replaceFigures(readme, "x").includes("x"));
});

test("writeFigures() names the machine, every figure, every verdict and every absence", () => {
  const text = writeFigures(RUN, "run.json", ["gemm.svg"]);
  for (
    const part of [
      "Test CPU",
      "results/run.json",
      "charts/gemm.svg",
      "NOT met",
      "not measured",
      "onnxruntime-web 1.30.0",
    ]
  ) assert.ok(text.includes(part), part);
  assert.match(text, /\| tfjs-wasm \(Node 24\.0\.0\) +\| gemm +\| no such \\\| package/);
});

test("drawCharts() draws what there are figures for, with no number that is none", () => {
  const charts = drawCharts(RUN);
  assert.deepEqual([...charts.keys()], ["roofline.svg", "gemm.svg", "gemv.svg", "decode.svg", "lora.svg"]);
  for (const [name, svg] of charts) {
    assert.match(svg, /^<svg [^]*prefers-color-scheme: dark[^]*<\/svg>\n$/, name);
    assert.doesNotMatch(svg, /NaN|undefined|Infinity/, name);
  }
  assert.match(charts.get("decode.svg")!, /tokens\/s/);
});

test("planJobs() plans what is asked for, and shuffle() keeps every job", () => {
  const request = { home: "/h", scratch: "/s" };
  const full = planJobs({ ...request, quick: false, only: TOPICS });
  const quick = planJobs({ ...request, quick: true, only: TOPICS });
  assert.ok(quick.length < full.length);
  for (const party of ["lora", "onnxruntime-web", "tfjs-wasm", "jax-js", "numpy", "wllama", "node-llama-cpp"]) {
    assert.ok(quick.some((job) => job.party === party), party);
  }
  const merge = planJobs({ ...request, quick: false, only: ["merge"] });
  assert.deepEqual([...new Set(merge.flatMap(({ topics }) => topics))], ["merge"]);
  assert.deepEqual(new Set(shuffle(full)), new Set(full));
});

test("timeInTurns() counts what a body says that counts, and undoes outside the clock", async () => {
  let undone = 0;
  const bodies = [{ run: () => 7, undo: () => void undone++ }, { run: async () => await Promise.resolve(5) }];
  const [first, second] = await timeInTurns(bodies, { ms: 0 });
  assert.deepEqual([first!.least, second!.least, undone], [7, 5, 7]);
  assert.deepEqual(summarize(Array.from({ length: 30 }, (_, i) => i)).batches.slice(0, 2), [0.5, 2.5]);
  assert.deepEqual([median([3, 1, 2]), median([4, 1, 2, 3])], [2, 2.5]);
});

test("encodeBlocks() writes what the dequantisers read, within half a step", () => {
  const values = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i * 1.7) * (i < 32 ? 1 : 0));
  for (const [format, type, step] of [["q4_0", "Q4_0", 1 / 8], ["q8_0", "Q8_0", 1 / 127]] as const) {
    const out = new Float32Array(64);
    dequantizer(type)!(encodeBlocks(values, format), out);
    // The positive end of q4_0 is one step short, and scales are rounded to 16 bits.
    const bound = format === "q4_0" ? step * 1.01 : step * 0.55;
    values.forEach((value, i) =>
      assert.ok(Math.abs(out[i]! - value) <= bound, `${format} ${i}: ${out[i]} for ${value}`)
    );
  }
});

test("rewriteGguf() keeps metadata and writes every matrix as f32", async () => {
  const halves = { dtype: "F16", shape: [2, 32], bytes: new Uint8Array(128).fill(0x3c) } as const;
  const gain = fromFloat32(Float32Array.of(1, 2, 3), [3]);
  const metadata = new Map([["general.architecture", { type: "string", value: "llama" } as const]]);
  const file = await rewriteGguf(
    encodeGguf(metadata, new Map<string, StoredTensor>([["gain", gain], ["matrix", halves]])),
    "f32",
  );
  const source = memorySource("out.gguf", file);
  const gguf = await readGguf(source);
  assert.equal(gguf.metadata.get("general.architecture"), "llama");
  assert.deepEqual([...gguf.tensors.values()].map(({ name, type, shape }) => [name, type, shape]), [
    ["gain", "F32", [3]],
    ["matrix", "F32", [2, 32]],
  ]);
  assert.deepEqual([...toFloat32(await readGgufTensor(source, gguf.tensors.get("gain")!))], [1, 2, 3]);
  const matrix = toFloat32(await readGgufTensor(source, gguf.tensors.get("matrix")!));
  assert.deepEqual(matrix, toFloat32({ ...halves, shape: [2, 32] }));
});

test("a quick run of one topic measures, reports, and leaves nothing else behind", { timeout: 120_000 }, () => {
  const out = mkdtempSync(join(tmpdir(), "lora-bench-test-"));
  try {
    const args = ["run", "-A", "--no-check", MAIN, "--quick", "--only", "binary", "--out", out];
    const stdout = execFileSync(findDeno()!, args, { encoding: "utf8", env: { ...process.env, TMPDIR: out } });
    assert.match(stdout, /kernels-relaxed\.wasm, size +≤ 96\.0 kB/);
    assert.deepEqual(readdirSync(out).sort(), ["README.md", "charts", "results"]);
    const [file] = readdirSync(join(out, "results"));
    const run = JSON.parse(readFileSync(join(out, "results", file!), "utf8")) as Run;
    assert.deepEqual([run.quick, run.only], [true, ["binary"]]);
    assert.match(readFileSync(join(out, "README.md"), "utf8"), /kernels-relaxed\.wasm/);
  } finally {
    rmSync(out, { recursive: true });
  }
});
