/** Longest piece of untrusted text that an error message repeats. */
const MAX_QUOTED = 120;

/**
 * Puts untrusted text in double quotes for an error message: control characters are escaped and long text is cut.
 *
 * @param text Any text.
 * @returns The quoted text.
 */
export function quote(text: string): string {
  return JSON.stringify(text.length > MAX_QUOTED ? `${text.slice(0, MAX_QUOTED)}…` : text);
}
