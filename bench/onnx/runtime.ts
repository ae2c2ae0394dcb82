/** The part of onnxruntime-web that the bench calls. */
import { importPeer } from "../child.ts";
import type { Job } from "../types.ts";

/** A tensor. */
export interface OrtTensor {
  readonly data: Float32Array;
  readonly dims: readonly number[];
  dispose(): void;
}

/** A model that is loaded. */
export interface OrtSession {
  run(feeds: Readonly<Record<string, OrtTensor>>): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}

/** The library. */
export interface Ort {
  readonly env: {
    readonly versions: { readonly web?: string; readonly common: string };
    readonly wasm: { numThreads: number };
    logLevel: string;
  };
  readonly Tensor: new (
    type: string,
    data: Float32Array | Int32Array | BigInt64Array,
    dims: readonly number[],
  ) => OrtTensor;
  readonly InferenceSession: {
    create(model: Uint8Array, options: { readonly executionProviders: readonly string[] }): Promise<OrtSession>;
  };
}

/** Loads it with so many threads. */
export async function openOrt(job: Job): Promise<Ort> {
  const ort = await importPeer<Ort>(job, "onnxruntime-web/node_modules/onnxruntime-web/dist/ort.node.min.mjs");
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  return ort;
}
