/** SVG by hand: a page that is readable on a light and on a dark background, and the few shapes that charts need. */

/** A point on the page. */
export interface Point {
  readonly x: number;
  readonly y: number;
}

/** Where text stands to its point. */
export interface TextOptions {
  readonly anchor?: "start" | "middle" | "end";
  /** Classes of the style sheet below. */
  readonly style?: string;
  readonly rotated?: boolean;
}

/** Classes that give a series its colour. */
export const SERIES = ["own", "s1", "s2", "s3", "s4", "s5", "s6"] as const;

const STYLE = `
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #24292f; }
  text { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
  .title { font-size: 16px; font-weight: 600; }
  .small { font-size: 11.5px; fill: #59636e; }
  .strong { font-weight: 600; }
  .page { fill: #ffffff; }
  .grid { stroke: #d8dee4; stroke-width: 1; }
  .axis { stroke: #818b98; stroke-width: 1; }
  .limit { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }
  .line { fill: none; stroke-width: 2; }
  .own { --c: #0969da; } .s1 { --c: #bc4c00; } .s2 { --c: #1a7f37; } .s3 { --c: #8250df; }
  .s4 { --c: #9a6700; } .s5 { --c: #bf3989; } .s6 { --c: #6e7781; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; stroke: #0d1117; } .small { fill: #9198a1; } .page { fill: #0d1117; }
    .grid { stroke: #2a313c; } .axis { stroke: #656c76; } .limit { stroke: #9198a1; }
    .own { --c: #58a6ff; } .s1 { --c: #f0883e; } .s2 { --c: #3fb950; } .s3 { --c: #bc8cff; }
    .s4 { --c: #d29922; } .s5 { --c: #f778ba; } .s6 { --c: #8b949e; }
  }
  .fill { fill: var(--c); } .stroke { stroke: var(--c); } .faint { opacity: 0.45; }
`;

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function place(value: number): string {
  return String(Math.round(value * 10) / 10);
}

/** A whole picture. */
export function page(width: number, height: number, title: string, shapes: readonly string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    `<title>${escape(title)}</title>`,
    `<style>${STYLE}</style>`,
    `<rect class="page" width="${width}" height="${height}" rx="6"/>`,
    text({ x: 20, y: 28 }, title, { style: "title" }),
    ...shapes,
    "</svg>\n",
  ].join("\n");
}

/** Words. */
export function text(
  { x, y }: Point,
  words: string,
  { anchor = "start", style = "", rotated }: TextOptions = {},
): string {
  const turn = rotated ? ` transform="rotate(-90 ${place(x)} ${place(y)})"` : "";
  const look = style ? ` class="${style}"` : "";
  return `<text x="${place(x)}" y="${place(y)}" text-anchor="${anchor}"${look}${turn}>${escape(words)}</text>`;
}

/** A straight line. */
export function line(from: Point, to: Point, style: string): string {
  return `<line class="${style}" x1="${place(from.x)}" y1="${place(from.y)}" x2="${place(to.x)}" y2="${place(to.y)}"/>`;
}

/** A line through points. */
export function path(points: readonly Point[], style: string): string {
  return `<polyline class="${style}" points="${points.map(({ x, y }) => `${place(x)},${place(y)}`).join(" ")}"/>`;
}

/** A bar. */
export function bar(corner: Point, width: number, height: number, style: string): string {
  const { x, y } = corner;
  return `<rect class="${style}" x="${place(x)}" y="${place(y)}" width="${place(width)}" height="${
    place(height)
  }" rx="2"/>`;
}

/** A dot. */
export function dot({ x, y }: Point, style: string, radius = 4): string {
  return `<circle class="${style}" cx="${place(x)}" cy="${place(y)}" r="${radius}"/>`;
}

/** Moves labels apart so that none covers another; order and the middle of the heap stay. */
export function spread(ys: readonly number[], gap: number): number[] {
  const order = ys.map((_, index) => index).sort((a, b) => ys[a]! - ys[b]!);
  const placed = [...ys];
  for (let pass = 0; pass < 50; pass++) {
    for (let rank = 1; rank < order.length; rank++) {
      const [upper, lower] = [order[rank - 1]!, order[rank]!];
      const missing = gap - (placed[lower]! - placed[upper]!);
      if (missing <= 0) continue;
      placed[upper]! -= missing / 2;
      placed[lower]! += missing / 2;
    }
  }
  return placed;
}

/** Round steps of an axis from 0 to at least `most`. */
export function ticks(most: number, count = 5): number[] {
  const rough = most / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= rough)!;
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, index) => index * step);
}

/** 1, 12.5, 1,234 */
export function short(value: number): string {
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return Number(value.toFixed(digits)).toLocaleString("en-US");
}
