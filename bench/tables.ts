/** A run as tables: columns of text, for the terminal and for Markdown alike. */
import { median } from "../src/cli/bench_timing.ts";
import type { Column } from "../src/cli/table.ts";
import { overhead, type Pair, readableRate, shareOfLimit } from "./figures.ts";
import { judge, type TargetResult } from "./targets.ts";
import { type Figure, type Run, type Topic, TOPICS } from "./types.ts";

/** A table under a heading. */
export interface Table {
  readonly heading: string;
  readonly columns: readonly Column[];
  readonly rows: readonly (readonly string[])[];
}

const HEADINGS: Readonly<Record<Topic, string>> = {
  gemm: "Matrix products",
  gemv: "Matrix times vector",
  lora: "Unmerged adapters",
  merge: "Merging",
  decode: "A model: decoding",
  prefill: "A model: reading a prompt",
  accuracy: "Accuracy of number formats",
  binary: "WebAssembly binaries",
};

function right(title: string): Column {
  return { title, align: "right" };
}

function digits(value: number, unit = ""): string {
  if (Number.isNaN(value)) return "";
  if (unit === "%") return `${(100 * value).toFixed(1)} %`;
  return `${value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)}${unit && ` ${unit}`}`;
}

function both(pair: Pair | null | undefined, unit: string): [string, string] {
  return pair ? [digits(pair.least, unit), digits(pair.median, unit)] : ["", ""];
}

/** The promises, and whether they are kept. */
export function targetTable(run: Run): Table {
  const rows = judge(run).map(({ figure, sense, bound, unit, measured, met }: TargetResult) => [
    figure,
    `${sense} ${digits(bound, unit)}`,
    ...both(measured, unit),
    measured ? digits(measured.least / bound) : "",
    met === null ? "not measured" : met ? "met" : "NOT met",
  ]);
  const columns = [
    { title: "figure" },
    right("target"),
    right("by least times"),
    right("by medians"),
    right("least / target"),
    { title: "" },
  ];
  return { heading: "Targets", columns, rows };
}

/** The figures of each topic. */
export function figureTables(run: Run): Table[] {
  return TOPICS.flatMap((topic) => {
    const figures = run.figures.filter((figure) => figure.topic === topic).toSorted(byName);
    return figures.length === 0 ? [] : [figureTable(HEADINGS[topic], figures)];
  });
}

function byName(a: Figure, b: Figure): number {
  const key = ({ name, variant, threads }: Figure) => [size(name), name, threads, variant.split(/[ ,]/)[0]!] as const;
  const [x, y] = [key(a), key(b)];
  for (const [index, value] of x.entries()) {
    if (value !== y[index]) return value < y[index]! ? -1 : 1;
  }
  return readableRate(b).median - readableRate(a).median;
}

function size(name: string): number {
  const sizes = name.split(" x ").map(Number);
  return sizes.some(Number.isNaN) ? 0 : sizes.reduce((product, size) => product * size, 1);
}

function figureTable(heading: string, figures: readonly Figure[]): Table {
  const columns = [
    { title: "" },
    { title: "format" },
    { title: "library" },
    { title: "engine" },
    right("threads"),
    right("best"),
    right("median"),
    { title: "unit" },
    right("of limit"),
    right("over base"),
    right("batches"),
  ];
  const rows = figures.map((figure) => {
    const rate = readableRate(figure);
    // Limits of our kernels are measured on one thread, those of decoding on as many as it has.
    const share = figure.threads === 1 || figure.topic === "decode" ? shareOfLimit(figure) : null;
    return [
      figure.name,
      figure.variant,
      `${figure.party}${figure.version ? ` ${figure.version}` : ""}`,
      figure.engine,
      String(figure.threads),
      digits(rate.least),
      digits(rate.median),
      rate.unit,
      both(share, "%")[0],
      both(overhead(figure), "%")[0],
      String(figure.times.batches.length),
    ];
  });
  const used = columns.map((_, index) => rows.some((row) => row[index] !== ""));
  return {
    heading,
    columns: columns.filter((_, index) => used[index]),
    rows: rows.map((row) => row.filter((_, index) => used[index])),
  };
}

/** Numbers that are no times. */
export function factTables({ facts }: Run): Table[] {
  return TOPICS.flatMap((topic) => {
    const some = facts.filter((fact) => fact.topic === topic);
    if (some.length === 0) return [];
    const names = Object.keys(some[0]!.values);
    const columns = [{ title: "" }, { title: "format" }, ...names.map(right)];
    const rows = some.map(({ name, variant, values }) => [
      name,
      variant,
      ...names.map((key) =>
        Number((values[key] ?? NaN).toPrecision(5)).toLocaleString("en-US", { maximumFractionDigits: 4 })
      ),
    ]);
    return [{ heading: HEADINGS[topic], columns, rows }];
  });
}

/** What is not there, and why. */
export function absentTable({ absent }: Run): Table {
  const lines = absent.map(({ party, engine, threads, topic, variant, error }) => {
    const where = `${party}${variant && `, ${variant}`} (${engine}${threads > 1 ? `, ${threads} threads` : ""})`;
    return { where, topic, error };
  });
  const groups = Map.groupBy(lines, ({ where, error }) => JSON.stringify([where, error]));
  const rows = [...groups.values()].map((group) => [
    group[0]!.where,
    [...new Set(group.map(({ topic }) => topic))].join(", "),
    group[0]!.error,
  ]);
  return { heading: "Absent", columns: [{ title: "who" }, { title: "what" }, { title: "why" }], rows: rows.sort() };
}

/** Best and median of the limits of the silicon in a run. */
export function limitRates(
  { figures }: Run,
): { readonly name: string; readonly best: number; readonly median: number }[] {
  const names = { fma: "multiply-adds, GFLOP/s", read: "reading, GB/s", copy: "reading and writing, GB/s" } as const;
  const own = figures.filter(({ threads }) => threads === 1).flatMap(({ limits = [] }) => limits);
  return Object.entries(names).flatMap(([kind, name]) => {
    const some = own.filter((limit) => limit.kind === kind);
    if (some.length === 0) return [];
    const best = Math.max(...some.map(({ per, times }) => per / times.least / 1e6));
    return [{ name, best, median: median(some.map(({ per, times }) => per / median(times.batches) / 1e6)) }];
  });
}
