/** The charts of a run. */
import { findFigures, overhead, ownFigure, readableRate } from "./figures.ts";
import { type Bar, drawBars } from "./plots/bars.ts";
import { drawLines, type Series } from "./plots/lines.ts";
import { drawRoofline, type RooflinePoint } from "./plots/roofline.ts";
import type { PeakKind } from "../src/cli/peak.ts";
import type { Figure, Run } from "./types.ts";

const GEMM_PLACES = ["256", "512", "1024", "2048"].map((size) => `${size} x ${size} x ${size}`);
const LARGE = "128 x 4096 x 4096";
const GEMV = "1 x 4096 x 4096";
const STYLES: Readonly<Record<string, string>> = {
  "lora": "own",
  "onnxruntime-web": "s1",
  "tfjs-wasm": "s2",
  "jax-js": "s3",
  "ml-matrix": "s4",
  "node-llama-cpp": "s6",
  "wllama": "s4",
  "numpy": "s6",
};

/** Charts by the names of their files; those without figures are left out. */
export function drawCharts(run: Run): Map<string, string> {
  const charts = { roofline, gemm, gemv, decode: models("decode"), prefill: models("prefill"), lora };
  return new Map(
    Object.entries(charts).flatMap(([name, draw]) => {
      const svg = draw(run);
      return svg === null ? [] : [[`${name}.svg`, svg] as const];
    }),
  );
}

function styleOf({ party }: Figure): string {
  return STYLES[party] ?? "s5";
}

/** The highest rate of a limit in one thread of the main engine. */
export function peakOf(run: Run, kind: PeakKind): number {
  const own = run.figures.filter(({ party, threads, engine }) =>
    party === "lora" && threads === 1 && engine.startsWith("Node")
  );
  const rates = own.flatMap(({ limits = [] }) =>
    limits.filter((limit) => limit.kind === kind).map(({ per, times }) => per / times.least / 1e6)
  );
  return Math.max(...rates);
}

function roofline(run: Run): string | null {
  const [fmaGflops, readGBs] = [peakOf(run, "fma"), peakOf(run, "read")];
  if (!Number.isFinite(fmaGflops) || !Number.isFinite(readGBs)) return null;
  const chosen = [...findFigures(run, { topic: "gemv", name: GEMV }), ...findFigures(run, { topic: "gemm" })].filter((
    { party, engine, name, variant },
  ) =>
    party !== "numpy" && party !== "ml-matrix" && (party !== "lora" || engine.startsWith("Node")) &&
    ["1024 x 1024 x 1024", GEMV].includes(name) && !/transposeB|level 4/.test(variant)
  );
  const points = chosen.flatMap((figure): RooflinePoint[] => {
    const flop = figure.work.flop ?? NaN;
    const [m = 0, k = 0, n = 0] = figure.name.split(" x ").map(Number);
    const bytes = figure.work.bytes ?? 4 * (m * k + k * n + m * n);
    const shape = m === 1 ? "GEMV" : "GEMM 1024³";
    const label = `${figure.party} ${shape} ${figure.variant.split(",")[0]}`;
    return [{ label, style: styleOf(figure), intensity: flop / bytes, gflops: flop / figure.times.least / 1e6 }];
  });
  if (points.length === 0) return null;
  return drawRoofline({ title: "Roofline, one thread, best times", fmaGflops, readGBs, points });
}

function gemm(run: Run): string | null {
  const places = [...GEMM_PLACES, LARGE];
  const figures = findFigures(run, { topic: "gemm" })
    .filter(({ variant, name }) => /^(f32|f64)/.test(variant) && places.includes(name));
  if (figures.length === 0) return null;
  const groups = Map.groupBy(figures, (figure) => lineName(figure));
  const series = [...groups].map(([label, group]): Series => ({
    label,
    style: label.startsWith("lora") && !label.includes("Node") ? "s5" : styleOf(group[0]!),
    values: places.map((place) => {
      const figure = group.find(({ name }) => name === place);
      return figure && readableRate(figure).least;
    }),
  }));
  const peak = peakOf(run, "fma");
  const limit = { label: "FMA peak of WebAssembly", style: "limit", isLimit: true, values: places.map(() => peak) };
  const shown = places.map((place) => place === LARGE ? "128 x 4096²" : `${place.split(" ")[0]}³`);
  const title = "Matrix product in f32, one thread, best times";
  const all = Number.isFinite(peak) ? [limit, ...series] : series;
  return drawLines({ title, xTitle: "rows x inputs x outputs", yTitle: "GFLOP/s", places: shown, series: all });
}

function lineName({ party, engine, variant }: Figure): string {
  const form = variant === "f32" ? "" : `, ${variant.replace("f32, ", "")}`;
  if (party === "numpy") return `numpy, native${form}`;
  return party === "lora" ? `lora, ${engine.replace(/\.\d+$/, "")}` : party + form;
}

function gemv(run: Run): string | null {
  const figures = findFigures(run, { topic: "gemv", name: GEMV });
  if (figures.length === 0) return null;
  const limit = peakOf(run, "read");
  const formats = ["f32", "bf16", "int8", "int4", "nf4"];
  const groups = formats.map((format) => {
    const some = figures.filter(({ variant }) => variant.split(",")[0] === format);
    const bars = some.map((figure) => barOf(figure, lineName(figure).replace(`, ${format}`, "")));
    return { heading: format, bars: sortBars(bars), ...(Number.isFinite(limit) && { limit }) };
  });
  return drawBars({
    title: "Matrix times vector, 4096 x 4096, one thread",
    unit: "GB/s of weights",
    limitName: "reading memory",
    groups: groups.filter(({ bars }) => bars.length > 0),
  });
}

function barOf(figure: Figure, label: string): Bar {
  const { median, least: best } = readableRate(figure);
  return { label, style: styleOf(figure), median, best };
}

function sortBars(bars: readonly Bar[]): Bar[] {
  return bars.toSorted((a, b) => b.median - a.median);
}

function models(topic: "decode" | "prefill"): (run: Run) => string | null {
  return (run) => {
    const groups = [1, 2].map((threads) => {
      const figures = findFigures(run, { topic, threads });
      const bars = figures.map((figure) => {
        const engine = figure.party === "lora" ? `, ${figure.engine.replace(/\.\d+$/, "")}` : "";
        return barOf(figure, `${figure.party}${engine}, ${figure.variant}`);
      });
      return { heading: threads === 1 ? "one thread" : `${threads} threads`, bars: sortBars(bars) };
    }).filter(({ bars }) => bars.length > 0);
    if (groups.length === 0) return null;
    const what = topic === "decode" ? "decoding" : "reading a prompt of 512 tokens";
    return drawBars({ title: `SmolLM2-135M, ${what}`, unit: "tokens/s", groups });
  };
}

function lora(run: Run): string | null {
  const ranks = [8, 16, 64];
  const percent = (party: "lora" | "onnxruntime-web", rows: number) =>
    ranks.map((rank) => {
      const wanted = { topic: "lora", name: `${rows} x 4096 x 4096`, variant: `f32 r=${rank}` } as const;
      const figure = party === "lora" ? ownFigure(run, wanted) : findFigures(run, { ...wanted, party })[0];
      const added = figure && overhead(figure);
      return added ? 100 * added.least : undefined;
    });
  const series: Series[] = [
    { label: "floor: its FLOP", style: "limit", isLimit: true, values: ranks.map((rank) => 100 * 2 * rank / 4096) },
    { label: "lora, 1 row", style: "own", values: percent("lora", 1) },
    { label: "lora, 128 rows", style: "s3", values: percent("lora", 128) },
    { label: "onnxruntime-web, 1 row", style: "s1", values: percent("onnxruntime-web", 1) },
    { label: "onnxruntime-web, 128 rows", style: "s4", values: percent("onnxruntime-web", 128) },
  ];
  if (series.slice(1).every(({ values }) => values.every((value) => value === undefined))) return null;
  const title = "What an unmerged adapter adds to a layer of 4096 x 4096 f32";
  return drawLines({ title, xTitle: "rank", yTitle: "added time, %", places: ranks.map(String), series });
}
