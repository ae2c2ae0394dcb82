/**
 * Language models and encoders with adapters, beside PEFT's answers.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Adapter } from "../../src/adapter/adapter.ts";
import { saveAdapter } from "../../src/adapter/save.ts";
import type { Backend } from "../../src/backend.ts";
import type { Folder } from "../../src/formats/source.ts";
import { folder } from "../../src/fs/mod.ts";
import type { AdapterSelection } from "../../src/lora/selection.ts";
import { type Encoder, type LanguageModel, loadEncoder, loadModel } from "../../src/models/mod.ts";
import { compareMerged, type Findings, mergeCase, readAll } from "./findings.ts";

type Model = LanguageModel | Encoder;

/** Checks one adapter over a model: answers, merges, and what saving it keeps. */
export async function checkModel(backend: Backend, findings: Findings): Promise<void> {
  const { expected, tolerance, info } = findings;
  const adapter = await findings.load("adapter");
  await saveAdapter(adapter, folder(join(findings.path, "saved")));
  const truth = expected.get("adapted.output");
  if (!("layer_replication" in (info.config ?? {}))) {
    const model = await openModel(backend, findings.kind, findings.base);
    try {
      const before = await answer(model, findings, null);
      findings.compare("base", before, expected.get("base.output"), tolerance);
      await model.loadAdapter("a", adapter);
      findings.compare("adapted", await answer(model, findings, "a"), truth, tolerance);
      findings.compare("base beside it", await answer(model, findings, null), exactly(before), 0);
      if (!adapter.invocationTokens) {
        await model.merge("a");
        findings.compare("merged in place", await answer(model, findings), truth, tolerance);
        model.unmerge();
        findings.compare("unmerged", await answer(model, findings, null), exactly(before), 0);
      }
    } finally {
      model.dispose();
    }
  }
  if (!adapter.invocationTokens) await checkMerge(backend, findings, [{ adapter }], truth);
}

async function checkMerge(
  backend: Backend,
  findings: Findings,
  adapters: readonly { readonly adapter: Adapter; readonly weight?: number }[],
  truth: Parameters<Findings["compare"]>[2],
): Promise<void> {
  // Biases that the base has no place for are in the merged files, and in no model.
  if (/lora_bias/.test(findings.info.merge ?? "")) return;
  const merged = await mergeCase(findings, adapters, { dtype: "f32", backend });
  const model = await openModel(backend, findings.kind, merged.files);
  try {
    findings.compare("merged checkpoint", await answer(model, findings), truth, findings.tolerance);
  } finally {
    model.dispose();
  }
  // Where PEFT's merge differs from its own forward, as with tied tables, there is nothing to compare with.
  if (!((findings.info.gap ?? 1) < 1e-9)) return;
  const before = await readAll(new Uint8Array(readFileSync(join(findings.path, "base", "model.safetensors"))));
  compareMerged(findings, merged, before);
  compareMerged(findings, await mergeCase(findings, adapters, { backend }), before);
}

/** Checks several adapters over one model: each alone, their sum, and rows of their own. */
export async function checkModels(backend: Backend, findings: Findings): Promise<void> {
  const { expected, tolerance, info: { names = [], weights, rows } } = findings;
  const model = await openModel(backend, findings.kind, findings.base);
  const adapters = new Map<string, Adapter>();
  try {
    for (const name of names) {
      adapters.set(name, await findings.load(name));
      await model.loadAdapter(name, adapters.get(name)!);
    }
    for (const name of names) {
      findings.compare(name, await answer(model, findings, name), expected.get(`${name}.output`), tolerance);
    }
    if (rows) {
      const chosen = rows.map((name) => name === "__base__" ? null : name);
      findings.compare("rows", await answer(model, findings, chosen), expected.get("rows.output"), tolerance);
    }
    if (!weights) return;
    const mix = expected.get("mix.output");
    findings.compare("mix", await answer(model, findings, weights), mix, tolerance);
    await model.merge(weights);
    findings.compare("merged mix", await answer(model, findings), mix, tolerance);
    model.unmerge();
    const weighted = names.map((name) => ({ adapter: adapters.get(name)!, weight: weights[name]! }));
    await checkMerge(backend, findings, weighted, mix);
  } finally {
    model.dispose();
  }
}

function openModel(backend: Backend, kind: string, files: Folder): Promise<Model> {
  const load = kind.startsWith("bert") ? loadEncoder : loadModel;
  return load(files, { backend, dtype: "f32" });
}

async function answer(model: Model, { expected }: Findings, adapter?: AdapterSelection): Promise<Float32Array> {
  const { shape: [rows = 0, length = 0], values } = expected.get("input_ids")!;
  const ids = Array.from({ length: rows }, (_, i) => Array.from(values.subarray(i * length, (i + 1) * length)));
  return (await model.forward(ids, { adapter })).values;
}

function exactly(values: Float32Array): { shape: readonly number[]; values: Float64Array } {
  return { shape: [values.length], values: Float64Array.from(values) };
}
