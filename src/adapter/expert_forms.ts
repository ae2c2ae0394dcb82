/**
 * Experts of a mixture, as one parameter with all of them or as linear layers one by one: the same updates in both forms.
 *
 * ```text
 * gate_up_proj  A_e = [A_gate; A_up]   B_e = blockdiag(B_gate, B_up)   the gate's rows come first
 * down_proj     A_e, B_e as they are
 * ```
 *
 * @module
 */

import { fromFloat32, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import type { LoraModule, ReportLine } from "./adapter.ts";
import { lastName } from "./paths.ts";
import { ownerOf } from "./module_places.ts";

/** Modules in the form that a base has. */
export interface ConvertedModules {
  /** The modules. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** What was converted. */
  readonly report: readonly ReportLine[];
}

/** The shape of a base's tensor by name; undefined if there is none. */
export type ShapeOf = (tensor: string) => readonly number[] | undefined;

type Role = "gate" | "up" | "down";

const ROLES: Readonly<Record<string, Role>> = {
  w1: "gate",
  w3: "up",
  w2: "down",
  gate_proj: "gate",
  up_proj: "up",
  down_proj: "down",
};
const EXPERT = /^(.+\.experts)\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)$/;

/** A of one expert, (r, in), and B (out, r), of fused factors. */
export function expertFactors({ loraA, loraB, rank, experts = 1 }: LoraModule, expert: number): {
  readonly a: StoredTensor;
  readonly b: StoredTensor;
} {
  const width = loraA.bytes.length / loraA.shape[0]!;
  const bytes = loraA.bytes.subarray(expert * rank * width, (expert + 1) * rank * width);
  const a = { dtype: loraA.dtype, shape: [rank, loraA.shape[1]!], bytes };
  const [rows, columns] = loraB.shape as readonly [number, number];
  const size = loraB.bytes.length / (rows * columns);
  const picked = new Uint8Array(rows * rank * size);
  for (let i = 0; i < rows * rank; i++) {
    const from = (Math.floor(i / rank) * columns + (i % rank) * experts + expert) * size;
    picked.set(loraB.bytes.subarray(from, from + size), i * size);
  }
  return { a, b: { dtype: loraB.dtype, shape: [rows, rank], bytes: picked } };
}

/**
 * Fuses factors of single experts where the base has its experts as one parameter.
 *
 * @param modules The modules.
 * @param shapeOf The base.
 * @returns The modules; a missing gate, up projection or expert is zero.
 */
export function fuseExperts(modules: ReadonlyMap<string, LoraModule>, shapeOf: ShapeOf): ConvertedModules {
  const fused = new Map(modules);
  const groups = new Map<string, { readonly module: LoraModule; readonly expert: number; readonly role: Role }[]>();
  for (const module of modules.values()) {
    const [, path, expert, leaf] = EXPERT.exec(module.name) ?? [];
    if (path === undefined || !isPlain(module) || shapeOf(`${module.name}.weight`)) continue;
    const role = ROLES[leaf!]!;
    const name = fusedNames(path, role).find((candidate) => shapeOf(candidate)?.length === 3);
    if (name === undefined) continue;
    groups.set(name, [...groups.get(name) ?? [], { module, expert: Number(expert), role }]);
  }
  const report: ReportLine[] = [];
  for (const [name, parts] of groups) {
    const experts = shapeOf(name)![0]!;
    if (parts.some(({ expert }) => expert >= experts)) continue;
    for (const { module } of parts) fused.delete(module.name);
    fused.set(name, fuse(name, parts, experts));
    const what = `the factors of ${parts.length} linear layers are fused`;
    report.push({ module: name, what, why: "the base has its experts as one parameter" });
  }
  return { modules: fused, report };
}

function isPlain({ kind, magnitude, loraBias, diagonal }: LoraModule): boolean {
  return kind === "linear" && !magnitude && !loraBias && !diagonal;
}

/** Mixtral's module was renamed when its experts were fused. */
function fusedNames(path: string, role: Role): readonly string[] {
  const parameter = role === "down" ? "down_proj" : "gate_up_proj";
  return [path, path.replace(/\.block_sparse_moe\.experts$/, ".mlp.experts")].map((owner) => `${owner}.${parameter}`);
}

interface ExpertPart {
  readonly module: LoraModule;
  readonly expert: number;
  readonly role: Role;
}

function fuse(name: string, parts: readonly ExpertPart[], experts: number): LoraModule {
  const [{ module: first }] = parts as readonly [ExpertPart];
  const { inFeatures, outFeatures: rows, scaling } = first;
  const rankOf = (role: Role) => Math.max(0, ...parts.filter((part) => part.role === role).map((p) => p.module.rank));
  const roles: readonly Role[] = parts.some(({ role }) => role === "down") ? ["down"] : ["gate", "up"];
  const rank = roles.reduce((sum, role) => sum + rankOf(role), 0);
  const outFeatures = rows * roles.length;
  const a = new Float32Array(rank * experts * inFeatures);
  const b = new Float32Array(outFeatures * rank * experts);
  for (const { module, expert, role } of parts) {
    const at = role === "up" ? rankOf("gate") : 0;
    a.set(toFloat32(module.loraA), (expert * rank + at) * inFeatures);
    const values = toFloat32(module.loraB);
    const factor = module.scaling / scaling;
    for (let i = 0; i < values.length; i++) {
      const [row, j] = [Math.floor(i / module.rank), i % module.rank];
      b[((role === "up" ? rows : 0) + row) * rank * experts + (at + j) * experts + expert] = values[i]! * factor;
    }
  }
  return {
    name,
    kind: "experts",
    rank,
    alpha: scaling * rank,
    scaling,
    inFeatures,
    outFeatures,
    dtype: "F32",
    loraA: fromFloat32(a, [rank * experts, inFeatures]),
    loraB: fromFloat32(b, [outFeatures, rank * experts]),
    experts,
    parameter: lastName(name),
  };
}

/**
 * Splits fused factors where the base has its experts one by one.
 *
 * @param modules The modules.
 * @param shapeOf The base.
 * @returns The modules; gate and up projection share A.
 */
export function splitExperts(modules: ReadonlyMap<string, LoraModule>, shapeOf: ShapeOf): ConvertedModules {
  const split = new Map(modules);
  const report: ReportLine[] = [];
  for (const [name, module] of modules) {
    if (module.kind !== "experts" || !module.parameter || shapeOf(name)) continue;
    const leaves = singleLeaves(ownerOf(name, module.parameter), module.parameter, shapeOf);
    if (!leaves) continue;
    split.delete(name);
    for (let e = 0; e < module.experts!; e++) {
      for (const single of singleExperts(module, e, leaves)) split.set(single.name, single);
    }
    const what = `its factors are split into those of ${module.experts} experts`;
    report.push({ module: name, what, why: "the base has its experts one by one" });
  }
  return { modules: split, report };
}

interface Leaves {
  readonly path: string;
  readonly names: readonly string[];
}

function singleLeaves(owner: string, parameter: string, shapeOf: ShapeOf): Leaves | undefined {
  const choices = parameter === "down_proj"
    ? [["down_proj"], ["w2"]]
    : parameter === "gate_up_proj"
    ? [["gate_proj", "up_proj"], ["w1", "w3"]]
    : [];
  for (const path of [owner, owner.replace(/\.mlp\.experts$/, ".block_sparse_moe.experts")]) {
    const names = choices.find(([leaf]) => shapeOf(`${path}.0.${leaf}.weight`));
    if (names) return { path, names };
  }
  return undefined;
}

function singleExperts(module: LoraModule, expert: number, { path, names }: Leaves): LoraModule[] {
  const { a, b } = expertFactors(module, expert);
  const { rank, alpha, scaling, inFeatures, dtype } = module;
  const outFeatures = b.shape[0]! / names.length;
  const width = b.bytes.length / names.length;
  return names.map((leaf, i) => ({
    name: `${path}.${expert}.${leaf}`,
    kind: "linear",
    rank,
    alpha,
    scaling,
    inFeatures,
    outFeatures,
    dtype,
    loraA: a,
    loraB: { dtype: b.dtype, shape: [outFeatures, rank], bytes: b.bytes.subarray(i * width, (i + 1) * width) },
  }));
}
