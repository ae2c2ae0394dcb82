/** One heat map: a table of numbers from 0 to 1, rows from the top. */
export interface HeatMapPanel {
  /** Text above it. */
  readonly title: string;
  /** The numbers. */
  readonly table: readonly (readonly number[])[];
}

const CELL = 9;
const GAP = 24;
const TITLE = 16;
/** Room for a title at 11 pixels a line. */
const LEAST_WIDTH = 260;
const MAX_WIDTH = 1400;
/** Viridis, dark at 0. */
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]] as const;

/**
 * Draws heat maps beside and below each other, 0 dark and 1 bright; every cell tells its value to the pointer.
 *
 * @param panels The heat maps.
 * @returns An SVG document.
 */
export function formatHeatMaps(panels: readonly HeatMapPanel[]): string {
  const parts: string[] = [];
  let [x, y, rowHeight, width] = [GAP, GAP, 0, 0];
  for (const { title, table } of panels) {
    const panelWidth = Math.max(LEAST_WIDTH, CELL * (table[0]?.length ?? 0));
    const panelHeight = TITLE + CELL * table.length;
    if (x > GAP && x + panelWidth > MAX_WIDTH) [x, y, rowHeight] = [GAP, y + rowHeight + GAP, 0];
    parts.push(`<g transform="translate(${x} ${y})"><text y="10">${escapeXml(title)}</text>${formatCells(table)}</g>`);
    rowHeight = Math.max(rowHeight, panelHeight);
    width = Math.max(width, x + panelWidth + GAP);
    x += panelWidth + GAP;
  }
  const height = y + rowHeight + GAP;
  const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" ` +
    'font-size="11"><rect width="100%" height="100%" fill="#fff"/>';
  return `${head}\n${parts.join("\n")}\n</svg>\n`;
}

function formatCells(table: HeatMapPanel["table"]): string {
  return table.map((row, i) =>
    row.map((value, j) => {
      const place = `x="${CELL * j}" y="${TITLE + CELL * i}" width="${CELL}" height="${CELL}"`;
      return `<rect ${place} fill="${colourOf(value)}"><title>i ${i + 1}, j ${j + 1}: ${
        value.toFixed(3)
      }</title></rect>`;
    }).join("")
  ).join("");
}

function colourOf(value: number): string {
  const at = Math.min(1, Math.max(0, value)) * (COLOURS.length - 1);
  const below = Math.min(COLOURS.length - 2, Math.floor(at));
  const mix = COLOURS[below]!.map((from, i) => Math.round(from + (at - below) * (COLOURS[below + 1]![i]! - from)));
  return `rgb(${mix.join(",")})`;
}

function escapeXml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
