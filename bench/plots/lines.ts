/** Lines over a few named places, labelled at their right ends. */
import { dot, line, page, path, type Point, short, spread, text, ticks } from "./svg.ts";

/** One line; places it has no value for are left out. */
export interface Series {
  readonly label: string;
  readonly style: string;
  readonly values: readonly (number | undefined)[];
  /** Dashed: what the silicon allows. */
  readonly isLimit?: boolean;
}

/** What is drawn. */
export interface LineChart {
  readonly title: string;
  readonly xTitle: string;
  readonly yTitle: string;
  readonly places: readonly string[];
  readonly series: readonly Series[];
}

const WIDTH = 860;
const HEIGHT = 430;
const [LEFT, RIGHT, TOP, BOTTOM] = [70, 210, 56, 56];

/** The chart as SVG. */
export function drawLines({ title, xTitle, yTitle, places, series }: LineChart): string {
  const known = series.flatMap(({ values }) => values.filter((value) => value !== undefined));
  const [least, most] = [Math.min(0, ...known), Math.max(...known)];
  const steps = ticks(most);
  const below = least < 0 ? -Math.ceil(-least / steps[1]!) * steps[1]! : 0;
  const top = steps.at(-1)!;
  const at = (index: number, value: number): Point => ({
    x: LEFT + (index + 0.5) / places.length * (WIDTH - LEFT - RIGHT),
    y: HEIGHT - BOTTOM - (value - below) / (top - below) * (HEIGHT - TOP - BOTTOM),
  });
  const right = WIDTH - RIGHT;
  const levels = below < 0 ? [below, ...steps] : steps;
  return page(WIDTH, HEIGHT, title, [
    ...levels.flatMap((value) => [
      line({ x: LEFT, y: at(0, value).y }, { x: right, y: at(0, value).y }, value === 0 ? "axis" : "grid"),
      text({ x: LEFT - 8, y: at(0, value).y + 4 }, short(value), { anchor: "end", style: "small" }),
    ]),
    ...places.map((place, index) =>
      text({ x: at(index, 0).x, y: HEIGHT - BOTTOM + 20 }, place, { anchor: "middle", style: "small" })
    ),
    text({ x: (LEFT + right) / 2, y: HEIGHT - 12 }, xTitle, { anchor: "middle" }),
    text({ x: 20, y: (TOP + HEIGHT - BOTTOM) / 2 }, yTitle, { anchor: "middle", rotated: true }),
    ...drawSeries(series, at),
  ]);
}

function drawSeries(series: readonly Series[], at: (index: number, value: number) => Point): string[] {
  const lines = series.map(({ values, ...rest }) => ({
    ...rest,
    points: values.flatMap((value, index) => value === undefined ? [] : [at(index, value)]),
  })).filter(({ points }) => points.length > 0);
  const labels = spread(lines.map(({ points }) => points.at(-1)!.y), 16);
  return lines.flatMap(({ label, style, isLimit, points }, index) => {
    const end = points.at(-1)!;
    const x = WIDTH - RIGHT + 14;
    return [
      path(points, isLimit ? "limit" : `${style} line stroke`),
      ...(isLimit ? [] : points.map((point) => dot(point, `${style} fill`))),
      line({ x: end.x + 7, y: end.y }, { x: x - 4, y: labels[index]! }, "grid"),
      text({ x, y: labels[index]! + 4 }, label, {
        style: isLimit ? "small" : `${style} fill${style === "own" ? " strong" : ""}`,
      }),
    ];
  });
}
