/**
 * Kohya's names: a path whose dots are underscores. Many paths have the same name, so they are looked up, never guessed.
 *
 * @module
 */

import { FormatError, MismatchError } from "../../errors.ts";
import { quote } from "../../formats/quote.ts";

/** Names in the paths of one architecture; numbers stand after lists, or after each other. */
interface Vocabulary {
  readonly lists: ReadonlySet<string>;
  readonly names: ReadonlySet<string>;
}

/** The models that sd-scripts trains, and the Llama family: lists, then other names. */
const ARCHITECTURES: readonly (readonly [lists: string, names: string])[] = [
  [
    "layers",
    "model self_attn q_proj k_proj v_proj o_proj out_proj qkv_proj mlp gate_proj up_proj down_proj gate_up_proj " +
    "lm_head text_model encoder fc1 fc2 text_projection",
  ],
  [
    "down_blocks up_blocks attentions resnets transformer_blocks single_transformer_blocks net to_out",
    "mid_block attn attn1 attn2 to_q to_k to_v ff ff_context proj proj_in proj_out proj_mlp time_emb_proj linear_1 " +
    "linear_2 time_embedding add_embedding add_q_proj add_k_proj add_v_proj to_add_out norm norm1 norm1_context linear",
  ],
  [
    "input_blocks middle_block output_blocks double_blocks single_blocks joint_blocks transformer_blocks net to_out " +
    "img_mlp txt_mlp emb_layers adaLN_modulation",
    "attn attn1 attn2 to_q to_k to_v ff proj proj_in proj_out img_attn txt_attn img_mod txt_mod qkv lin linear1 " +
    "linear2 modulation context_block x_block mlp fc1 fc2",
  ],
  ["block layer", "encoder SelfAttention DenseReluDense q k v o wi_0 wi_1 wo"],
];
/** Most underscores in a name of the longest name above, plus one. */
const LONGEST_NAME = 3;
const MAX_PARTS = 64;
/** Paths kept for each beginning of a name: enough to know that there is not one. */
const MAX_PATHS = 8;

/**
 * Turns a path into Kohya's name for it, without prefix.
 *
 * @param path Path of the module.
 * @returns The path with underscores for dots.
 */
export function flattenPath(path: string): string {
  return path.replaceAll(".", "_");
}

/**
 * Makes the way back from names to paths.
 *
 * @param modules Paths of the base's modules; without them the names of known architectures decide.
 * @param file Name of the file, for messages.
 * @returns The path of a name; it throws `MismatchError` for a name that no path has, `FormatError` for one that several
 * have.
 */
export function pathReader(
  modules: Iterable<string> | undefined,
  file: string,
): (name: string, tensor: string) => string {
  const pathsOf = modules === undefined ? tableReader() : listReader(modules);
  return (name, tensor) => {
    const paths = pathsOf(name);
    if (paths.length === 1) return paths[0]!;
    if (paths.length > 1) {
      const found = paths.slice(0, 2).map(quote).join(" and ");
      const message = `Cannot place tensor ${quote(tensor)} of ${quote(file)}: its name is that of ${found}`;
      const details = { code: "ambiguous-name", file, tensor, found: paths, expected: "one module" };
      throw new FormatError(`${message}; expected a list of the base's modules in which only one has it`, details);
    }
    const wanted = modules === undefined
      ? "the base's list of modules, since its name is of no architecture known here"
      : "a module of the base";
    const message = `Cannot place tensor ${quote(tensor)} of ${quote(file)}: expected ${wanted}`;
    throw new MismatchError(message, { code: "unknown-name", file, tensor, unexpected: [tensor] });
  };
}

function listReader(modules: Iterable<string>): (name: string) => readonly string[] {
  const paths = new Map<string, string[]>();
  for (const path of new Set(modules)) {
    const name = flattenPath(path);
    const known = paths.get(name);
    if (known) known.push(path);
    else paths.set(name, [path]);
  }
  return (name) => paths.get(name) ?? [];
}

function tableReader(): (name: string) => readonly string[] {
  const vocabularies = ARCHITECTURES.map(([lists, names]): Vocabulary => ({
    lists: new Set(lists.split(" ")),
    names: new Set(`${lists} ${names}`.split(" ")),
  }));
  return (name) => {
    const parts = name.split("_");
    if (parts.length > MAX_PARTS) return [];
    return [...new Set(vocabularies.flatMap((vocabulary) => splitName(parts, vocabulary)))];
  };
}

/** All paths of an architecture that have a name, found from its beginnings on. */
function splitName(parts: readonly string[], { lists, names }: Vocabulary): readonly string[] {
  const follows = (before: string, name: string) => {
    const isIndex = /^\d{1,4}$/.test(before);
    if (/^\d{1,4}$/.test(name)) return isIndex || lists.has(before);
    return names.has(name) && (isIndex || !lists.has(before));
  };
  const pathsTo: string[][][] = [[[]]];
  for (let end = 1; end <= parts.length; end++) {
    const paths: string[][] = [];
    for (let start = Math.max(0, end - LONGEST_NAME); start < end; start++) {
      const name = parts.slice(start, end).join("_");
      for (const path of pathsTo[start]!) {
        if (paths.length < MAX_PATHS && follows(path.at(-1) ?? "", name)) paths.push([...path, name]);
      }
    }
    pathsTo.push(paths);
  }
  return pathsTo.at(-1)!.map((path) => path.join("."));
}
