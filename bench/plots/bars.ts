/** Horizontal bars: the solid part is the median, the faint one reaches to the best. */
import { bar, line, page, short, text, ticks } from "./svg.ts";

/** One bar. */
export interface Bar {
  readonly label: string;
  /** A class of {@linkcode SERIES}. */
  readonly style: string;
  readonly median: number;
  readonly best: number;
}

/** Bars under one heading, with the limit that they share. */
export interface BarGroup {
  readonly heading: string;
  readonly bars: readonly Bar[];
  readonly limit?: number;
}

/** What is drawn. */
export interface BarChart {
  readonly title: string;
  readonly unit: string;
  /** What the dashed lines are. */
  readonly limitName?: string;
  readonly groups: readonly BarGroup[];
}

const WIDTH = 860;
const LEFT = 300;
const RIGHT = 90;
const TOP = 62;
const ROW = 22;
const HEADING = 26;

/** The chart as SVG. */
export function drawBars({ title, unit, limitName, groups }: BarChart): string {
  const most = Math.max(...groups.flatMap(({ bars, limit = 0 }) => [limit, ...bars.map(({ best }) => best)]));
  const steps = ticks(most);
  const scale = (value: number) => LEFT + value / steps.at(-1)! * (WIDTH - LEFT - RIGHT);
  const rows = groups.reduce((sum, { bars }) => sum + HEADING + bars.length * ROW, 0);
  const bottom = TOP + rows + 6;
  const shapes = steps.flatMap((value) => [
    line({ x: scale(value), y: TOP - 8 }, { x: scale(value), y: bottom }, "grid"),
    text({ x: scale(value), y: bottom + 18 }, short(value), { anchor: "middle", style: "small" }),
  ]);
  let y = TOP;
  for (const group of groups) {
    shapes.push(...drawGroup(group, y, scale));
    y += HEADING + group.bars.length * ROW;
  }
  shapes.push(line({ x: LEFT, y: TOP - 8 }, { x: LEFT, y: bottom }, "axis"));
  const note = `${unit}; solid: median, faint: best${limitName ? `; dashed: ${limitName}` : ""}`;
  shapes.push(text({ x: 20, y: 46 }, note, { style: "small" }));
  return page(WIDTH, bottom + 32, title, shapes);
}

function drawGroup({ heading, bars, limit }: BarGroup, top: number, scale: (value: number) => number): string[] {
  const shapes = [text({ x: 20, y: top + 17 }, heading, { style: "strong" })];
  bars.forEach(({ label, style, median, best }, index) => {
    const y = top + HEADING + index * ROW;
    const own = style === "own" ? "strong" : "";
    shapes.push(
      text({ x: LEFT - 8, y: y + 14 }, label, { anchor: "end", style: own }),
      bar({ x: LEFT, y: y + 3 }, Math.max(1, scale(best) - LEFT), ROW - 7, `${style} fill faint`),
      bar({ x: LEFT, y: y + 3 }, Math.max(1, scale(median) - LEFT), ROW - 7, `${style} fill`),
      text({ x: scale(best) + 6, y: y + 14 }, short(median), { style: own }),
    );
  });
  if (limit !== undefined) {
    const end = top + HEADING + bars.length * ROW;
    shapes.push(line({ x: scale(limit), y: top + HEADING - 2 }, { x: scale(limit), y: end }, "limit"));
  }
  return shapes;
}
