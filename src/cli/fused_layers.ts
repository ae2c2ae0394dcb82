import { FLUX_LAYERS } from "../adapter/dialects/flux.ts";
import type { FusedLayer } from "../adapter/dialects/fused.ts";
import type { KernelSizes } from "../adapter/dialects/conv_kernel.ts";
import { UsageError } from "./command.ts";

/** Which layers `lora convert` takes apart or puts together. */
export interface LayerOptions {
  readonly split: readonly FusedLayer[];
  readonly join: readonly FusedLayer[];
  /** `enable_lora` of loralib's MergedLinear by name. */
  readonly merged: Readonly<Record<string, readonly boolean[]>>;
  /** `kernel_size` of loralib's convolutions by name. */
  readonly kernels: KernelSizes;
}

/**
 * Reads `--split`, `--join`, `--merged` and `--kernel`.
 *
 * @throws {UsageError} If one is of another form.
 */
export function layerOptions(
  { split = [], join = [], merged = [], kernel = [] }: {
    split?: readonly string[];
    join?: readonly string[];
    merged?: readonly string[];
    kernel?: readonly string[];
  },
): LayerOptions {
  return {
    split: split.flatMap((text) => readLayer("split", text)),
    join: join.flatMap((text) => readLayer("join", text)),
    merged: Object.fromEntries(merged.map(readMerged)),
    kernels: Object.fromEntries(kernel.map(readKernel)),
  };
}

function readLayer(flag: string, text: string): readonly FusedLayer[] {
  if (text === "flux") return FLUX_LAYERS;
  const [whole = "", list = "", ...more] = text.split("=");
  const parts = list.split(",");
  const isPath = (path: string) => path.length > 1 && path.split("*").length === 2;
  if (more.length === 0 && isPath(whole) && parts.every(isPath)) return [{ whole, parts }];
  throw new UsageError(`Cannot use --${flag} "${text}": flux, or WHOLE=PART,PART… with one * in each is wanted`);
}

function readMerged(text: string): readonly [string, readonly boolean[]] {
  const [name = "", list = "", ...more] = text.split("=");
  const slices = list.split(",");
  if (more.length === 0 && name !== "" && slices.every((slice) => slice === "0" || slice === "1")) {
    return [name, slices.map((slice) => slice === "1")];
  }
  throw new UsageError(`Cannot use --merged "${text}": NAME=1,0,1 is wanted, 1 for each slice that is adapted`);
}

function readKernel(text: string): readonly [string, number | readonly number[]] {
  const [name = "", list = "", ...more] = text.split("=");
  const lengths = list.split(",");
  if (more.length === 0 && name !== "" && lengths.every((length) => /^[1-9]\d{0,3}$/.test(length))) {
    return [name, lengths.length === 1 ? Number(list) : lengths.map(Number)];
  }
  throw new UsageError(`Cannot use --kernel "${text}": NAME=3 is wanted, or the length of each dimension, NAME=1,1,1`);
}
