/** Caps of an adapter; each is checked before anything of that size is allocated. */
export interface AdapterLimits {
  /** Bytes of `adapter_config.json`; 1 MiB if absent. */
  readonly configBytes?: number;
  /** Bytes of the weight file; 256 MiB if absent. */
  readonly fileBytes?: number;
  /** Bytes of the weight file's header; the reader's own cap if absent. */
  readonly headerBytes?: number;
  /** Rank of a module; 256 if absent. */
  readonly rank?: number;
  /** Adapted modules, and entries of each list in the config; 4096 if absent. */
  readonly modules?: number;
}

/** The caps where a caller gives none; they fit a function with 1 GiB of memory. */
export const DEFAULT_LIMITS: Required<Omit<AdapterLimits, "headerBytes">> = {
  configBytes: 2 ** 20,
  fileBytes: 2 ** 28,
  rank: 256,
  modules: 4096,
};

/**
 * Completes caps. One that is undefined has its default too: a caller's missing setting never lifts a cap.
 *
 * @param limits What a caller gives.
 * @returns The caps.
 * @throws {TypeError} If one is no number from 0.
 */
export function completeLimits(
  limits: AdapterLimits = {},
): Required<Omit<AdapterLimits, "headerBytes">> & AdapterLimits {
  const given = Object.entries(limits).filter(([, value]) => value !== undefined);
  for (const [name, value] of given) {
    if (typeof value === "number" && value >= 0) continue;
    throw new TypeError(`Cannot use ${value} as the limit ${name}: expected a number from 0`);
  }
  return { ...DEFAULT_LIMITS, ...Object.fromEntries(given) };
}
