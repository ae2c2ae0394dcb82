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
  /** Which factor, or the alpha. */
  readonly part: "a" | "b" | "alpha";
}

const COMPONENT = /^(unet|transformer(?:_2)?|text_encoder(?:_[23])?|prior|controlnet)\.(.+)$/;
const FACTOR =
  /^(.+?)(?:\.lora_(?<peft>[AB])\.weight|\.lora(?:_linear_layer)?\.(?<half>down|up)\.weight|\.(?<alpha>alpha))$/;
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
  const found = FACTOR.exec(name);
  const { peft, half, alpha } = found?.groups ?? {};
  if (!found) return null;
  const part = alpha !== undefined ? "alpha" : peft === "A" || half === "down" ? "a" : "b";
  return { component, path: found[1]!, part };
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
