/** One heat map: a table of numbers from 0 to 1, rows from the top. */
export interface HeatMapPanel {
  /** Text above it. */
  readonly title: string;
  /** The numbers. */
  readonly table: readonly (readonly number[])[];
}

/** What the sides of all heat maps count, from 1. */
export interface HeatMapAxes {
  /** Down the rows. */
  readonly rows: string;
  /** Along the columns. */
  readonly columns: string;
}

/** Sides of a cell: small tables have large ones. */
const [LEAST_CELL, MOST_CELL] = [9, 22];
const WANTED_WIDTH = 240;
const GAP = 24;
/** Room above for the title and the numbers of columns, and at the left for those of rows. */
const [TOP, LEFT] = [34, 40];
/** Room for a title at 11 pixels a line. */
const LEAST_WIDTH = 260;
const MAX_WIDTH = 1400;
const LEGEND_HEIGHT = 34;
/** Numbers stand at least so far apart. */
const TICK_ROOM = 22;
/** Viridis, dark at 0. */
const COLOURS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]] as const;

/**
 * Draws heat maps beside and below each other, 0 dark and 1 bright, with a scale of the colours; every cell tells its
 * value to the pointer.
 *
 * @param panels The heat maps.
 * @param axes What their sides count.
 * @returns An SVG document.
 */
export function formatHeatMaps(panels: readonly HeatMapPanel[], axes: HeatMapAxes): string {
  const parts: string[] = [];
  let [x, y, rowHeight, width] = [GAP, GAP + LEGEND_HEIGHT, 0, LEAST_WIDTH + 2 * GAP];
  for (const { title, table } of panels) {
    const cell = cellOf(table);
    const panelWidth = Math.max(LEAST_WIDTH, LEFT + cell * (table[0]?.length ?? 0));
    const panelHeight = TOP + cell * table.length;
    if (x > GAP && x + panelWidth > MAX_WIDTH) [x, y, rowHeight] = [GAP, y + rowHeight + GAP, 0];
    const inner = `<text y="10">${escapeXml(title)}</text>${formatTicks(table, cell)}${formatCells(table, cell)}`;
    parts.push(`<g transform="translate(${x} ${y})">${inner}</g>`);
    rowHeight = Math.max(rowHeight, panelHeight);
    width = Math.max(width, x + panelWidth + GAP);
    x += panelWidth + GAP;
  }
  const height = y + rowHeight + GAP;
  const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" ` +
    'font-size="11"><rect width="100%" height="100%" fill="#fff"/>';
  return `${head}\n${formatLegend(axes)}\n${parts.join("\n")}\n</svg>\n`;
}

function cellOf(table: HeatMapPanel["table"]): number {
  const columns = table[0]?.length ?? 1;
  return Math.min(MOST_CELL, Math.max(LEAST_CELL, Math.floor(WANTED_WIDTH / columns)));
}

function formatLegend({ rows, columns }: HeatMapAxes): string {
  const steps = 40;
  const bar = Array.from({ length: steps }, (_, i) => {
    return `<rect x="${14 + 3 * i}" y="0" width="3" height="12" fill="${colourOf(i / (steps - 1))}"/>`;
  }).join("");
  const end = 14 + 3 * steps;
  const text = `rows: ${rows}; columns: ${columns}`;
  const labels = `<text y="10">0</text><text x="${end + 6}" y="10">1</text>` +
    `<text x="${end + 30}" y="10">${escapeXml(text)}</text>`;
  return `<g transform="translate(${GAP} ${GAP})">${bar}${labels}</g>`;
}

/** The numbers of the first row and column, and of every n-th after them, as there is room. */
function formatTicks(table: HeatMapPanel["table"], cell: number): string {
  const step = Math.ceil(TICK_ROOM / cell);
  const isShown = (i: number) => (i + 1) % step === 0 || i === 0;
  const columns = (table[0] ?? []).map((_, j) =>
    isShown(j)
      ? `<text x="${LEFT + cell * (j + 0.5)}" y="${TOP - 4}" text-anchor="middle" fill="#666">${j + 1}</text>`
      : ""
  );
  const rows = table.map((_, i) =>
    isShown(i)
      ? `<text x="${LEFT - 6}" y="${TOP + cell * (i + 0.5) + 4}" text-anchor="end" fill="#666">${i + 1}</text>`
      : ""
  );
  return [...columns, ...rows].join("");
}

function formatCells(table: HeatMapPanel["table"], cell: number): string {
  return table.map((row, i) =>
    row.map((value, j) => {
      const place = `x="${LEFT + cell * j}" y="${TOP + cell * i}" width="${cell}" height="${cell}"`;
      const text = `i ${i + 1}, j ${j + 1}: ${value.toFixed(3)}`;
      return `<rect ${place} fill="${colourOf(value)}"><title>${text}</title></rect>`;
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
