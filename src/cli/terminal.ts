import process from "node:process";
import { styleText } from "node:util";

/** Where text goes: answers to `stdout`, everything about them to `stderr`. */
export type Stream = "stdout" | "stderr";

/** Whether a person reads that stream. */
export function isTerminal(stream: Stream): boolean {
  return process[stream].isTTY === true;
}

/** Columns of the terminal, or 80. */
export function terminalWidth(stream: Stream): number {
  return process[stream].columns || 80;
}

/** Columns that a table may take: those of the terminal, all it wants elsewhere. */
export function tableWidth(): number {
  return isTerminal("stdout") ? terminalWidth("stdout") : Infinity;
}

/** Writes text as it stands. */
export function print(text: string, stream: Stream = "stdout"): void {
  process[stream].write(text);
}

/** Writes a value as JSON. */
export function printJson(value: unknown): void {
  // What JSON leaves as it is a terminal may obey.
  const text = JSON.stringify(value, null, 2).replace(STEERING, escapeCharacter);
  print(text + "\n");
}

/** Controls beyond those that JSON escapes, and those that turn the direction of text or take no room. */
const STEERING = /[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function escapeCharacter(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** A file's name, or what is said of it, on the one line that it has: no other line or direction can be forged. */
export function oneLine(text: string): string {
  return printable(text).replace(/[\t\n]/g, "\u{fffd}").replace(STEERING, "\u{fffd}");
}

/** Replaces control characters, with which a model's text could steer the terminal. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, "\u{fffd}");
}

/** Colours text for people; elsewhere, or under `NO_COLOR`, it stays plain. */
export function paint(style: Parameters<typeof styleText>[0], text: string, stream: Stream = "stdout"): string {
  if (!isTerminal(stream) || process.env.NO_COLOR) return text;
  return styleText(style, text, { validateStream: false });
}

/** Greys the titles of a table. */
export function dimTitles(text: string, row: number): string {
  return row < 0 ? paint("dim", text) : text;
}

/** 1,234,567 */
export function formatCount(count: number): string {
  return count.toLocaleString("en-US");
}

/** 98.0 MB (powers of 1000, as file managers and download pages count). */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  return `${(bytes / 1000 ** unit).toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

/** 320 ms, 4.2 s, 3 min 20 s */
export function formatDuration(ms: number): string {
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (ms < 99_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
