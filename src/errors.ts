/**
 * The errors that callers catch. Every message reads
 * `Cannot <do what> <with what found>: <what was wanted>`; the fields say the same to programs.
 *
 * @module
 */

/** Where an error was found, and what was found and wanted there. */
export interface ErrorDetails {
  /** Stable identifier, for programs. */
  readonly code?: string;
  /** File name or URL, without credentials. */
  readonly file?: string;
  /** Tensor name inside the file. */
  readonly tensor?: string;
  /** Field of a config or header. */
  readonly field?: string;
  /** The state found. */
  readonly found?: unknown;
  /** The state wanted. */
  readonly expected?: unknown;
  /** The error that led to this one. */
  readonly cause?: unknown;
}

function describe<E extends Error>(error: E, name: string, code: string, details: ErrorDetails): void {
  Object.assign(error, { code, ...details });
  error.name = name;
}

/** Bytes are not what they claim to be: header, config, index, tokenizer, template, file name. */
export class FormatError extends SyntaxError implements ErrorDetails {
  declare readonly code: string;
  declare readonly file?: string;
  declare readonly tensor?: string;
  declare readonly field?: string;
  declare readonly found?: unknown;
  declare readonly expected?: unknown;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "FormatError", "format", details);
  }
}

/** Well-formed, but not for this base model or config: missing, unexpected or differently shaped tensors. */
export class MismatchError extends RangeError implements ErrorDetails {
  declare readonly code: string;
  declare readonly file?: string;
  declare readonly tensor?: string;
  declare readonly field?: string;
  declare readonly found?: unknown;
  declare readonly expected?: unknown;
  /** Names that found their place. */
  declare readonly applied?: readonly string[];
  /** Names that were wanted and are absent. */
  declare readonly missing?: readonly string[];
  /** Names that have no place. */
  declare readonly unexpected?: readonly string[];
  /** Creates the error; `details` become its fields. */
  constructor(
    message: string,
    details: ErrorDetails & {
      readonly applied?: readonly string[];
      readonly missing?: readonly string[];
      readonly unexpected?: readonly string[];
    } = {},
  ) {
    super(message);
    describe(this, "MismatchError", "mismatch", details);
  }
}

/** A cap would be passed. */
export class LimitError extends RangeError implements ErrorDetails {
  declare readonly code: string;
  declare readonly file?: string;
  declare readonly tensor?: string;
  declare readonly field?: string;
  /** The cap. */
  declare readonly limit: number;
  /** The value that passes it. */
  declare readonly value: number;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails & { readonly limit: number; readonly value: number }) {
    super(message);
    describe(this, "LimitError", "limit", details);
  }
}

/** Digest, ETag or length differs from what was promised. */
export class IntegrityError extends Error implements ErrorDetails {
  declare readonly code: string;
  declare readonly file?: string;
  declare readonly tensor?: string;
  declare readonly found?: unknown;
  declare readonly expected?: unknown;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "IntegrityError", "integrity", details);
  }
}

/** A caller's tensor has the wrong shape, dtype or storage. */
export class ShapeError extends RangeError implements ErrorDetails {
  declare readonly code: string;
  declare readonly field?: string;
  declare readonly found?: unknown;
  declare readonly expected?: unknown;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "ShapeError", "shape", details);
  }
}

/** NaN or infinity where a finite value is required. */
export class NumericError extends RangeError implements ErrorDetails {
  declare readonly code: string;
  declare readonly file?: string;
  declare readonly tensor?: string;
  declare readonly field?: string;
  declare readonly found?: unknown;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "NumericError", "numeric", details);
  }
}

/** A handle was used after it was disposed. */
export class DisposedError extends Error implements ErrorDetails {
  declare readonly code: string;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "DisposedError", "disposed", details);
  }
}

/** WebAssembly memory, GPU memory or a byte budget is used up. */
export class OutOfMemoryError extends RangeError implements ErrorDetails {
  declare readonly code: string;
  declare readonly found?: unknown;
  declare readonly expected?: unknown;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "OutOfMemoryError", "out-of-memory", details);
  }
}

/** The GPU device is gone, with all that it held: a new backend has to be opened, and filled again. */
export class DeviceLostError extends Error implements ErrorDetails {
  declare readonly code: string;
  /** Why, in WebGPU's word: `"destroyed"` or `"unknown"`. */
  declare readonly reason: string;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails & { readonly reason: string }) {
    super(message);
    describe(this, "DeviceLostError", "device-lost", details);
  }
}

/** A backend that was asked for by name cannot be opened. */
export class BackendUnavailableError extends Error implements ErrorDetails {
  declare readonly code: string;
  /** Creates the error; `details` become its fields. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message);
    describe(this, "BackendUnavailableError", "backend-unavailable", details);
  }
}
