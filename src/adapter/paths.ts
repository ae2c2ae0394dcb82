/**
 * Paths in a model: names with dots between them, at their end a parameter's where they name a tensor.
 *
 * @module
 */

/** A path without its last name; empty where it has only one. */
export function ownerPath(path: string): string {
  return path.slice(0, Math.max(path.lastIndexOf("."), 0));
}

/** The last name of a path. */
export function lastName(path: string): string {
  return path.slice(path.lastIndexOf(".") + 1);
}

/** Path of the module whose weight a tensor is; the tensor's own name if it is no weight. */
export function moduleOf(tensor: string): string {
  return tensor.replace(/\.weight$/, "");
}
