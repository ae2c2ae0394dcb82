/** Roofline (Williams et al. 2009): what a kernel reaches, under what its FLOP per byte allow. */
import { dot, line, page, path, type Point, short, spread, text } from "./svg.ts";

/** A kernel. */
export interface RooflinePoint {
  readonly label: string;
  readonly style: string;
  /** FLOP per byte that has to cross the memory bus. */
  readonly intensity: number;
  readonly gflops: number;
}

/** What is drawn. */
export interface Roofline {
  readonly title: string;
  readonly fmaGflops: number;
  readonly readGBs: number;
  readonly points: readonly RooflinePoint[];
}

const WIDTH = 860;
const HEIGHT = 470;
const [LEFT, RIGHT, TOP, BOTTOM] = [70, 30, 56, 56];
const LABEL_GAP = 15;
/** Points nearer than this share a stack of labels. */
const NEAR = 24;

/** The chart as SVG; both axes are logarithmic. */
export function drawRoofline({ title, fmaGflops, readGBs, points }: Roofline): string {
  const intensities = points.map(({ intensity }) => intensity);
  const rates = points.map(({ gflops }) => gflops);
  const x = logScale(Math.min(0.25, ...intensities) / 1.5, Math.max(...intensities) * 14, LEFT, WIDTH - RIGHT);
  const y = logScale(Math.min(...rates) / 1.6, fmaGflops * 2.5, HEIGHT - BOTTOM, TOP);
  const ridge = fmaGflops / readGBs;
  const roof = [
    { x: x(x.from), y: y(Math.max(y.from, x.from * readGBs)) },
    { x: x(ridge), y: y(fmaGflops) },
    { x: x(x.to), y: y(fmaGflops) },
  ];
  return page(WIDTH, HEIGHT, title, [
    ...powers(x).flatMap((value) => grid({ x: x(value), y: TOP }, { x: x(value), y: HEIGHT - BOTTOM }, short(value))),
    ...powers(y).flatMap((value) => grid({ x: LEFT, y: y(value) }, { x: WIDTH - RIGHT, y: y(value) }, short(value))),
    path(roof, "limit"),
    text({ x: WIDTH - RIGHT - 6, y: y(fmaGflops) - 10 }, `f32 multiply-adds: ${short(fmaGflops)} GFLOP/s`, {
      anchor: "end",
      style: "small",
    }),
    text({ x: x(ridge) - 10, y: y(fmaGflops) - 8 }, `reading memory: ${short(readGBs)} GB/s`, {
      anchor: "end",
      style: "small",
    }),
    text({ x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 12 }, "FLOP per byte (log)", { anchor: "middle" }),
    text({ x: 20, y: (TOP + HEIGHT - BOTTOM) / 2 }, "GFLOP/s (log)", { anchor: "middle", rotated: true }),
    ...drawPoints(points.map((point) => ({ ...point, x: x(point.intensity), y: y(point.gflops) }))),
  ]);
}

type Scale = ((value: number) => number) & { readonly from: number; readonly to: number };

function logScale(from: number, to: number, start: number, end: number): Scale {
  const scale = (value: number) => start + Math.log(value / from) / Math.log(to / from) * (end - start);
  return Object.assign(scale, { from, to });
}

/** 1, 2, 5, 10, … inside a scale. */
function powers({ from, to }: Scale): number[] {
  const all = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** (power - 3))).flat();
  return all.filter((value) => value >= from && value <= to);
}

function grid(from: Point, to: Point, label: string): string[] {
  const isVertical = from.x === to.x;
  const at = isVertical ? { x: to.x, y: to.y + 18 } : { x: from.x - 8, y: from.y + 4 };
  return [line(from, to, "grid"), text(at, label, { anchor: isVertical ? "middle" : "end", style: "small" })];
}

function drawPoints(points: readonly (RooflinePoint & Point)[]): string[] {
  const stacks: (RooflinePoint & Point)[][] = [];
  for (const point of points.toSorted((a, b) => a.x - b.x)) {
    const stack = stacks.at(-1);
    if (stack && point.x - stack[0]!.x < NEAR) stack.push(point);
    else stacks.push([point]);
  }
  return stacks.flatMap((stack) => {
    const labels = spread(stack.map(({ y }) => y), LABEL_GAP);
    const x = Math.max(...stack.map((point) => point.x)) + 10;
    return stack.flatMap((point, index) => [
      dot(point, `${point.style} fill`, point.style === "own" ? 5 : 4),
      text({ x, y: labels[index]! + 4 }, point.label, { style: `${point.style} fill small` }),
    ]);
  });
}
