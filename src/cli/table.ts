/** A column: its title, and `"right"` for numbers. */
export interface Column {
  /** Text of the first row. */
  readonly title: string;
  /** Side that the cells keep to; the default is left. */
  readonly align?: "left" | "right";
}

function pad(text: string, width: number, align: Column["align"]): string {
  return align === "right" ? text.padStart(width) : text.padEnd(width);
}

function widthsOf(columns: readonly Column[], rows: readonly (readonly string[])[]): number[] {
  return columns.map(({ title }, index) => Math.max(title.length, ...rows.map((row) => row[index]?.length ?? 0)));
}

/** Replaces the words, each up to a dot, that all names of the first column begin with by an ellipsis. */
function shortenNames(rows: readonly (readonly string[])[]): (readonly string[])[] {
  const names = rows.map(([name = ""]) => name.split("."));
  let shared = 0;
  while (names.every((words) => shared + 1 < words.length && words[shared] === names[0]?.[shared])) shared++;
  if (shared === 0) return [...rows];
  return rows.map(([, ...cells], row) => [`…${names[row]?.slice(shared).join(".")}`, ...cells]);
}

/**
 * Lays out rows under titles, two spaces between columns. Cells are plain text; `paint(text, row, column)` colours a
 * padded cell (row −1 is the title). Where the lines would be longer than `width`, the names in the first column lose
 * the words that they share.
 */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  paint: (text: string, row: number, column: number) => string = (text) => text,
  width: number = Infinity,
): string {
  const titles = columns.map((column) => column.title);
  const widths = widthsOf(columns, rows);
  if (rows.length > 1 && widths.reduce((sum, width) => sum + width + 2, -2) > width) {
    return formatTable(columns, shortenNames(rows), paint);
  }
  const line = (cells: readonly string[], row: number) =>
    columns
      .map((column, index) => paint(pad(cells[index] ?? "", widths[index] ?? 0, column.align), row, index))
      .join("  ")
      .trimEnd();
  return [line(titles, -1), ...rows.map(line)].map((text) => text + "\n").join("");
}
