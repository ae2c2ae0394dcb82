import { MismatchError } from "../../errors.ts";
import { quote } from "../../formats/quote.ts";
import type { ReportLine } from "../adapter.ts";

/**
 * Chooses the part of a pipeline that is read.
 *
 * @param file Name of the file.
 * @param found The parts in it.
 * @param wanted The part asked for.
 * @returns It, and a line for those left out.
 * @throws {MismatchError} If there are several and none is asked for, or it is not there.
 */
export function oneComponent(
  file: string,
  found: readonly string[],
  wanted: string | undefined,
): { readonly component: string; readonly report: readonly ReportLine[] } {
  const component = wanted ?? (found.length <= 1 ? found[0] ?? "" : undefined);
  if (component === undefined || (wanted !== undefined && !found.includes(wanted))) {
    const names = found.map(quote).join(", ");
    const what = component === undefined ? `with ${found.length} components` : `for component ${quote(component)}`;
    const message = `Cannot read ${quote(file)} ${what}: expected one of ${names}, an adapter is for one model`;
    throw new MismatchError(message, { code: "component", file, field: "component", found: wanted, expected: found });
  }
  const others = found.filter((name) => name !== component).map(quote).join(", ");
  if (others === "") return { component, report: [] };
  return {
    component,
    report: [{ module: file, what: `${others} left out`, why: `${quote(component)} was asked for` }],
  };
}

/** Text encoders by sd-scripts' prefixes; `lora_te` is the one of models that have only one. */
const TEXT_ENCODERS: readonly (readonly [kohya: string, diffusers: string])[] = [
  ["lora_te1", "text_encoder"],
  ["lora_te2", "text_encoder_2"],
  ["lora_te3", "text_encoder_3"],
];

/**
 * Translates the name of a component for sd-scripts.
 *
 * @param component The prefix, or diffusers' name.
 * @param known Prefixes among which it is, where they are known.
 * @returns The prefix, or undefined for undefined.
 */
export function kohyaPrefix(component: string | undefined, known: readonly string[] = []): string | undefined {
  if (component === "text_encoder" && known.includes("lora_te")) return "lora_te";
  if (component === "unet" || component?.startsWith("transformer")) return "lora_unet";
  return TEXT_ENCODERS.find(([, diffusers]) => diffusers === component)?.[0] ?? component;
}

/**
 * Translates the name of a component for diffusers.
 *
 * @param component The name, or a prefix of sd-scripts.
 * @returns The name, or undefined where the paths of the layers have to tell.
 */
export function diffusersComponent(component: string | undefined): string | undefined {
  if (component === "lora_unet") return undefined;
  if (component === "lora_te") return "text_encoder";
  return TEXT_ENCODERS.find(([kohya]) => kohya === component)?.[1] ?? component;
}
