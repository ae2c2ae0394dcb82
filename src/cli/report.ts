import type { ReportLine } from "../adapter/adapter.ts";
import { oneLine, paint, type Stream } from "./terminal.ts";

/** One line for each thing worth knowing. */
export function formatReport(lines: readonly ReportLine[], stream: Stream = "stderr"): string {
  return lines.map(({ module, what, why }) => {
    const place = module ? `${module}: ` : "";
    return `${paint("yellow", "!", stream)} ${oneLine(`${place}${what}, ${why}`)}\n`;
  }).join("");
}
