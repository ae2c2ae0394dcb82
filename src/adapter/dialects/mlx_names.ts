/**
 * Paths that mlx-lm has other names for than transformers.
 *
 * @module
 */

/** How the paths of a type of models begin: transformers' way, then mlx-lm's. */
const ROOTS: ReadonlyMap<string, readonly [own: string, mlx: string]> = new Map([
  ["gpt2", ["transformer.", "model."]],
  ["gptj", ["transformer.", "model."]],
]);

/**
 * Gives the path that a layer has in mlx-lm.
 *
 * @param path Path in transformers' model.
 * @param modelType `model_type` of the base, where it is known.
 * @returns The path.
 */
export function mlxPath(path: string, modelType = ""): string {
  const [own, mlx] = ROOTS.get(modelType) ?? ["", ""];
  return path.startsWith(own) ? mlx + path.slice(own.length) : path;
}

/**
 * The inverse of {@linkcode mlxPath}.
 *
 * @param path Path in mlx-lm's model.
 * @param modelType `model_type` of the base, where it is known.
 * @returns The path.
 */
export function transformersPath(path: string, modelType = ""): string {
  const [own, mlx] = ROOTS.get(modelType) ?? ["", ""];
  return path.startsWith(mlx) ? own + path.slice(mlx.length) : path;
}
