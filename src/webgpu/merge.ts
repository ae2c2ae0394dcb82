/**
 * Merging: W' = W + Σ s B A into panels of its own, which take W's place when every number in them is finite.
 *
 * @module
 */

import type { MergeLoss } from "../backend.ts";
import { NumericError } from "../errors.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import { codeOf, isPlain, panelBytes } from "./forms.ts";
import { cutPanels, type GpuWeight, type Panels } from "./handles.ts";
import type { HostBranch } from "./host_kernels.ts";
import type { PackedBranch } from "./linear.ts";
import { pieces } from "./memory.ts";
import type { Gpu, Packed } from "./product.ts";

/** See `Backend.merge`. All or nothing: until the end the weight is what it was. */
export async function mergePanels(gpu: Gpu, weight: GpuWeight, branches: readonly PackedBranch[]): Promise<MergeLoss> {
  if (weight.merging) throw new RangeError("Cannot merge twice: a merge into this weight is under way");
  const merged = gpu.memory.panels(weight.shape, weight.form);
  weight.merging = true;
  try {
    const write = isPlain(weight.form) ? writeMerged : writeRequantized;
    const report = await write(gpu, weight, merged, branches);
    if (!report) {
      throw new NumericError("Cannot merge adapters: the merged weight has elements that are not finite");
    }
    weight.original = weight.live;
    weight.panels = merged;
    return report;
  } catch (error) {
    merged.release();
    throw error;
  } finally {
    weight.merging = false;
  }
}

/** Merges on the host: dequantizes, adds, quantizes again. Null if a number is not finite. */
async function writeRequantized(
  { queue, memory }: Gpu,
  { panels, shape: [, k], form }: GpuWeight,
  merged: Panels,
  branches: readonly PackedBranch[],
): Promise<MergeLoss | null> {
  const [read, factors] = await Promise.all([
    memory.readPanels(panels),
    Promise.all(branches.map(async ({ a, b }) => [await readWhole(memory, a), await readWhole(memory, b)] as const)),
  ]);
  const each = panelBytes(k, form);
  const squares = { lost: 0, added: 0 };
  for (const { chunk, first, offset, count } of pieces(panels, each)) {
    const hosted = branches.map(({ rank, scaling }, i): HostBranch => {
      const [a, b] = factors[i]!;
      return { a, b: b.subarray((first + offset) * rank * 32, (first + offset + count) * rank * 32), rank, scaling };
    });
    const bytes = new Uint8Array(read[chunk]!, offset * each, count * each);
    const result = memory.host.merge(bytes, hosted, { k, form, squares });
    if (!result) return null;
    queue.upload(merged.chunks[chunk]!.block.buffer, offset * each, result);
  }
  return { error: squares.lost === 0 ? 0 : Math.sqrt(squares.lost / squares.added) };
}

async function readWhole(memory: Gpu["memory"], panels: Panels): Promise<Uint8Array> {
  const chunks = await memory.readPanels(panels);
  const whole = new Uint8Array(panels.bytes);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(new Uint8Array(chunk), at);
    at += chunk.byteLength;
  }
  return whole;
}

/** Writes the merged panels of floats on the GPU. Null if a number in them is not finite. */
async function writeMerged(
  { queue, memory }: Gpu,
  { panels, shape, form }: GpuWeight,
  merged: Panels,
  branches: readonly PackedBranch[],
): Promise<MergeLoss | null> {
  const flag = memory.flag();
  // Rounded once: sums of several steps are kept in f32.
  const steps = branches.flatMap(stepsOf);
  const sums = form === "bf16" && steps.length > 1 ? memory.panels(shape, "f32") : null;
  try {
    const [k, last] = [shape[1], Math.max(steps.length, 1) - 1];
    for (let i = 0; i <= last; i++) {
      const target = i < last && sums ? { panels: sums, form: "f32" } as const : { panels: merged, form };
      const source = i === 0 ? { panels, form } : sums && i === last ? { panels: sums, form: "f32" } as const : null;
      writeStep({ queue, memory }, { source, target, bad: flag.buffer, k }, steps[i]);
    }
    return new Uint32Array(await queue.read(flag.buffer, 4))[0] === 0 ? { error: 0 } : null;
  } finally {
    flag.release();
    sums?.release();
  }
}

/** Some ranks of a branch: those that one buffer of A holds. */
interface Step {
  readonly branch: PackedBranch;
  readonly a: DeviceBuffer;
  readonly aPanel: number;
  readonly rank0: number;
  readonly ranks: number;
}

function stepsOf(branch: PackedBranch): Step[] {
  return cutPanels(branch.a).map(({ first, count, parts }) => ({
    branch,
    a: parts[0]!.buffer,
    aPanel: parts[0]!.panel,
    rank0: first * 8,
    ranks: Math.min(branch.rank - first * 8, count * 8),
  }));
}

/** target = source + s B A, or target += that without a source; without a step B A is nothing. */
function writeStep(
  { queue }: Gpu,
  { source, target, bad, k }: { source: Packed | null; target: Packed; bad: DeviceBuffer; k: number },
  step: Step | undefined,
): void {
  const matrices = [target.panels, (source ?? target).panels, step?.branch.b ?? target.panels];
  for (const { count, parts: [to, from, b] } of cutPanels(...matrices)) {
    const input = source ? from!.buffer : step!.a;
    queue.dispatch({
      shader: "merge",
      constants: { FORM: codeOf((source ?? target).form), TARGET_BF16: target.form === "bf16" ? 1 : 0 },
      groups: Math.ceil(count * k / 64),
      buffers: [input, step?.a ?? input, step ? b!.buffer : input, to!.buffer, bad],
      integers: [
        ...[k, step?.branch.rank ?? 0, step?.rank0 ?? 0, step?.ranks ?? 0, step?.aPanel ?? 0],
        ...[count, from!.panel, step ? b!.panel : 0, to!.panel, source ? 0 : 1],
      ],
      floats: [step?.branch.scaling ?? 0],
    });
  }
}
