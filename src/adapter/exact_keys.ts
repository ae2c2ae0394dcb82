/**
 * Makes the keys by which `rank_pattern` and `alpha_pattern` name single modules. PEFT takes a key as the end of a path,
 * so one that is the end of another module's path is tied to the start.
 *
 * @param names The paths of all modules.
 * @returns The key of a path.
 */
export function exactKeys(names: Iterable<string>): (name: string) => string {
  const ends = new Set<string>();
  for (const name of names) {
    for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) ends.add(name.slice(dot + 1));
  }
  return (name) => `${ends.has(name) ? "^" : ""}${name.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")}`;
}
