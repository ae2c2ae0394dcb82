/**
 * Compute pipelines, compiled once per kernel and constants, and the layouts of their bindings.
 *
 * @module
 */

import { type Caught, inErrorScopes } from "./error_scopes.ts";
import { type ShaderName, SHADERS } from "./shaders.ts";

/** A compiled kernel. */
export interface Kernel {
  /** The pipeline. */
  readonly pipeline: GPUComputePipeline;
  /** Parameters first, with a dynamic offset; then the storage buffers. */
  readonly layout: GPUBindGroupLayout;
  /** Of each storage buffer, "r" or "w". */
  readonly access: string;
}

/** Values of a kernel's override constants. */
export type Constants = Readonly<Record<string, number>>;

/** Bytes of the parameters of one dispatch, also the alignment that every device's dynamic offsets allow. */
export const PARAMETER_BYTES = 256;

const COMPUTE_STAGE = 4;

/** The pipelines of one device. */
export class Pipelines {
  readonly #device: GPUDevice;
  readonly #report: (failure: Promise<Error | null>) => void;
  readonly #kernels = new Map<string, Kernel>();
  readonly #modules = new Map<ShaderName, GPUShaderModule>();
  readonly #layouts = new Map<string, GPUBindGroupLayout>();

  /** Takes the device, and who waits for failures of creations. */
  constructor(device: GPUDevice, report: (failure: Promise<Error | null>) => void) {
    this.#device = device;
    this.#report = report;
  }

  /** The kernel `name`, specialised by `constants`. */
  get(name: ShaderName, constants: Constants): Kernel {
    const key = `${name} ${Object.entries(constants).join(" ")}`;
    let kernel = this.#kernels.get(key);
    if (!kernel) this.#kernels.set(key, kernel = this.#compile(name, constants));
    return kernel;
  }

  #compile(name: ShaderName, constants: Constants): Kernel {
    const device = this.#device;
    const { access } = SHADERS[name];
    const module = this.#modules.get(name) ?? this.#compileModule(name);
    const { value, caught } = inErrorScopes(device, () => {
      const layout = this.#layout(access);
      const pipeline = device.createComputePipeline({
        label: name,
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: "main", constants },
      });
      return { pipeline, layout, access };
    });
    this.#report(caught.then((error) => error && cannotCompile(name, error)));
    return value;
  }

  #compileModule(name: ShaderName): GPUShaderModule {
    const { value, caught } = inErrorScopes(
      this.#device,
      () => this.#device.createShaderModule({ label: name, code: SHADERS[name].code }),
    );
    this.#modules.set(name, value);
    this.#report(caught.then((error) => error && explain(name, value, error)));
    return value;
  }

  #layout(access: string): GPUBindGroupLayout {
    const known = this.#layouts.get(access);
    if (known) return known;
    const parameters = { type: "uniform", hasDynamicOffset: true, minBindingSize: PARAMETER_BYTES } as const;
    const storage = [...access].map((mode) => ({ type: mode === "r" ? "read-only-storage" : "storage" }) as const);
    const entries = [parameters, ...storage].map((buffer, binding) => ({
      binding,
      visibility: COMPUTE_STAGE,
      buffer,
    }));
    const layout = this.#device.createBindGroupLayout({ entries });
    this.#layouts.set(access, layout);
    return layout;
  }
}

async function explain(name: ShaderName, module: GPUShaderModule, error: Caught): Promise<Error> {
  const { messages } = await module.getCompilationInfo();
  const first = messages.find(({ type }) => type === "error");
  if (!first) return cannotCompile(name, error);
  const [words] = first.message.trim().split("\n"); // The lines after it draw the place.
  return cannotCompile(name, { ...error, message: `${words} in line ${first.lineNum}` });
}

function cannotCompile(name: ShaderName, { message }: Caught): Error {
  return new Error(`Cannot compile shader "${name}": ${message}`);
}
