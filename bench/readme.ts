/** bench/README.md: the part between the markers is written from a run, all else by hand. */
import { absentTable, factTables, figureTables, limitRates, type Table, targetTable } from "./tables.ts";
import type { Run } from "./types.ts";

/** Where the written part begins and ends. */
export const MARKERS = ["<!-- figures: begin -->", "<!-- figures: end -->"] as const;

const ALT: Readonly<Record<string, string>> = {
  "roofline.svg": "What each kernel reaches under what the silicon allows",
  "gemm.svg": "GFLOP/s of matrix products by size and library",
  "gemv.svg": "GB/s of matrix times vector by number format and library",
  "decode.svg": "Tokens per second when decoding, by engine",
  "prefill.svg": "Tokens per second when reading a prompt, by engine",
  "lora.svg": "What an unmerged adapter adds, by rank",
};

/**
 * Replaces what is between the markers; the rest stays byte for byte.
 *
 * @throws {Error} If the text has not each marker once, in order.
 */
export function replaceFigures(readme: string, figures: string): string {
  const [begin, end] = MARKERS.map((marker) => readme.indexOf(marker)) as [number, number];
  const isOnce = MARKERS.every((marker) => readme.indexOf(marker) === readme.lastIndexOf(marker));
  if (begin < 0 || end < begin || !isOnce) {
    throw new Error(`Cannot write figures into a README without its markers: expected ${MARKERS.join(" … ")}`);
  }
  return `${readme.slice(0, begin + MARKERS[0].length)}\n\n${figures.trim()}\n\n${readme.slice(end)}`;
}

/** The figures of a run as Markdown. */
export function writeFigures(run: Run, file: string, charts: readonly string[]): string {
  const images = charts.map((chart) => `![${ALT[chart] ?? chart}](charts/${chart})`);
  const details = [...figureTables(run), ...factTables(run)].map(writeTable);
  return [
    writeMachine(run, file),
    writeTable(targetTable(run)),
    ...images,
    ...details,
    ...(run.absent.length > 0 ? [writeTable(absentTable(run))] : []),
  ].join("\n\n");
}

function writeMachine(run: Run, file: string): string {
  const { machine, date, commit, load, seconds, quick, only } = run;
  const limits = limitRates(run).map(({ name, best, median }) =>
    `${name} ${best.toFixed(1)} (median ${median.toFixed(1)})`
  );
  const partly = quick ? " A quick run: figures are coarse." : "";
  return [
    `${date.slice(0, 10)}, commit ${commit}, ${machine.cpu}, ${machine.cores} cores, ${machine.memoryGB} GB, ` +
    `${machine.system}; load average at the start ${load.toFixed(2)}; ${Math.round(seconds / 60)} min; ` +
    `topics: ${only.join(", ")}.${partly} Raw times: [${file}](results/${file}).`,
    limits.length > 0
      ? `Limits of one thread in WebAssembly, measured in turns with the kernels: ${limits.join("; ")}.`
      : "",
  ].filter(Boolean).join("\n\n");
}

function writeTable({ heading, columns, rows }: Table): string {
  const cell = (text: string) => text.replaceAll("|", "\\|").replaceAll("\n", " ");
  const line = (cells: readonly string[]) => `| ${cells.map(cell).join(" | ")} |`;
  const rule = columns.map(({ align }) => align === "right" ? "--:" : "---");
  return [`### ${heading}`, "", line(columns.map(({ title }) => title)), line(rule), ...rows.map(line)].join("\n");
}
