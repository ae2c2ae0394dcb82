import type { Adapter, ReportLine } from "../adapter/adapter.ts";
import { saveAdapter } from "../adapter/save.ts";
import { folder } from "../fs/mod.ts";
import { formatReport } from "./report.ts";
import { formatTable } from "./table.ts";
import { dimTitles, formatBytes, formatCount, oneLine, print, printJson, tableWidth } from "./terminal.ts";

interface Group {
  readonly ranks: number[];
  readonly errors: number[];
}

function formatRange(numbers: readonly number[]): string {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  return least === most ? String(least) : `${least}-${most}`;
}

/** 0.12, 3.1e-8 */
export function formatError(error: number): string {
  return error === 0 ? "0" : error < 1e-3 ? error.toExponential(1) : error.toPrecision(3);
}

/** What an adapter became: ranks and errors of its modules, those that differ in the layer only in one row. */
function formatErrors({ modules, report }: Adapter): string {
  const groups = new Map<string, Group>();
  for (const { module, error } of report) {
    const found = modules.get(module);
    if (error === undefined || !found) continue;
    const pattern = module.replace(/\.\d+\./, ".*.");
    const group = groups.get(pattern) ?? { ranks: [], errors: [] };
    group.ranks.push(found.rank);
    group.errors.push(error);
    groups.set(pattern, group);
  }
  const columns = [
    { title: "module" },
    { title: "modules", align: "right" },
    { title: "rank", align: "right" },
    { title: "mean error", align: "right" },
    { title: "worst", align: "right" },
  ] as const;
  const rows = [...groups].map(([pattern, { ranks, errors }]) => [
    oneLine(pattern),
    String(ranks.length),
    formatRange(ranks),
    formatError(errors.reduce((sum, error) => sum + error, 0) / errors.length),
    formatError(Math.max(...errors)),
  ]);
  return formatTable(columns, rows, dimTitles, tableWidth());
}

/** The first line of each reason, with the number of modules that share it. */
function oneForEachReason(lines: readonly ReportLine[]): ReportLine[] {
  return Array.from(Map.groupBy(lines, ({ why }) => why).values(), ([first, ...others]) => {
    return others.length === 0 ? first! : { ...first!, what: `${first!.what} (and ${others.length} more alike)` };
  });
}

/**
 * Writes an adapter to a folder and says what it became: the table, a line about the whole, and the report on stderr; or
 * all of it as JSON.
 */
export async function writeResult(
  adapter: Adapter,
  out: string,
  { json, signal }: { readonly json: boolean; readonly signal: AbortSignal },
): Promise<void> {
  await saveAdapter(adapter, folder(out), { signal });
  const { sha256, bytes, parameters, modules, report } = adapter;
  if (json) return printJson({ out, sha256, bytes, parameters, modules: modules.size, report });
  print(formatReport(oneForEachReason(report.filter(({ error }) => error === undefined))), "stderr");
  const counts = `${formatCount(modules.size)} modules, ${formatCount(parameters)} parameters`;
  print(`${formatErrors(adapter)}\n${oneLine(out)}: ${counts}, ${formatBytes(bytes)}\n`);
}
