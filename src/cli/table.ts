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

/**
 * Lays out rows under titles, two spaces between columns. Cells are plain text; `paint(text, row, column)` colours a
 * padded cell (row −1 is the title).
 */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  paint: (text: string, row: number, column: number) => string = (text) => text,
): string {
  const titles = columns.map((column) => column.title);
  const widths = titles.map((title, index) => Math.max(title.length, ...rows.map((row) => row[index]?.length ?? 0)));
  const line = (cells: readonly string[], row: number) =>
    columns
      .map((column, index) => paint(pad(cells[index] ?? "", widths[index] ?? 0, column.align), row, index))
      .join("  ")
      .trimEnd();
  return [line(titles, -1), ...rows.map(line)].map((text) => text + "\n").join("");
}
