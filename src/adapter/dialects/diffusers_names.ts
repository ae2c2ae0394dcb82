/**
 * The names that diffusers has given to factors over time.
 *
 * @module
 */

/** A name taken apart. */
export interface DiffusersKey {
  /** Part of the pipeline: `"unet"`. */
  readonly component: string;
  /** Path of the module in it. */
  readonly path: string;
  /** Which part of the module, or the alpha. */
  readonly part: "a" | "b" | "magnitude" | "loraBias" | "alpha";
}

const COMPONENT = /^(unet|transformer(?:_2)?|text_encoder(?:_[23])?|prior|controlnet)\.(.+)$/;
const FACTOR =
  /^(.+?)\.(lora_[AB]\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|alpha|lora_B\.bias|lora_mag\w+)$/;
const PARTS: ReadonlyMap<string, DiffusersKey["part"]> = new Map<string, DiffusersKey["part"]>([
  ["lora_A.weight", "a"],
  ["lora_B.weight", "b"],
  ["lora.down.weight", "a"],
  ["lora.up.weight", "b"],
  ["lora_linear_layer.down.weight", "a"],
  ["lora_linear_layer.up.weight", "b"],
  ["alpha", "alpha"],
  ["lora_B.bias", "loraBias"],
  ["lora_magnitude_vector", "magnitude"],
]);
/** `to_q_lora.down` of the first format: the layer's own name differs between text encoders and UNets. */
const OLD = /^(.+)\.to_(q|k|v|out)_lora\.(down|up)\.weight$/;

/**
 * Takes a tensor name apart: `unet.<path>.lora_A.weight`, `.lora.down.weight`, `.lora_linear_layer.down.weight`, or
 * `unet.<path>.processor.to_q_lora.down.weight` of the first format.
 *
 * @param tensor The name.
 * @returns Component, path and part, or null if the name is none of these.
 */
export function parseDiffusersKey(tensor: string): DiffusersKey | null {
  const [, component, rest] = COMPONENT.exec(tensor) ?? [];
  if (component === undefined || rest === undefined) return null;
  const name = rest.replaceAll(".processor.", ".");
  const [, parent, projection, oldHalf] = OLD.exec(name) ?? [];
  if (parent !== undefined) {
    return { component, path: `${parent}.${layerName(component, projection!)}`, part: oldHalf === "down" ? "a" : "b" };
  }
  const [, path, end = ""] = FACTOR.exec(name) ?? [];
  const part = PARTS.get(end);
  return path === undefined || part === undefined ? null : { component, path, part };
}

function layerName(component: string, projection: string): string {
  if (component.startsWith("text_encoder")) return `${projection}_proj`;
  return projection === "out" ? "to_out.0" : `to_${projection}`;
}

/**
 * Guesses the part of a pipeline by the paths of its layers.
 *
 * @param paths The paths.
 * @returns Its name in diffusers.
 */
export function guessComponent(paths: readonly string[]): string {
  if (paths.every((path) => path.startsWith("text_model."))) return "text_encoder";
  return paths.some((path) => /^(?:down_blocks|up_blocks|mid_block)\./.test(path)) ? "unet" : "transformer";
}
