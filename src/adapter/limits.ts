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
