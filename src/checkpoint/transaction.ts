import type { Sink, SinkFile } from "../formats/source.ts";

/** A file of a merge's output. */
export interface OutputFile {
  /** Its final name. */
  readonly name: string;
  /** Its length. */
  readonly bytes: number;
  /** Its sha256 in hexadecimal; null where the sink cannot tell. */
  readonly sha256: string | null;
}

/** A file to be written. */
export interface NewFile {
  /** Its final name. */
  readonly name: string;
  /** The length that it will have. */
  readonly bytes: number;
}

/** Writes a file: appends to it through `write`, whose bytes may be reused once it resolves. */
export type FileBody = (write: (bytes: Uint8Array) => Promise<void>) => Promise<void>;

/** Several files that appear together: none has its final name before `commit()`. */
export interface MergeOutput {
  /** The files that are written, in the order in which they were begun. */
  readonly files: readonly OutputFile[];
  /** The file as an earlier run of the same merge finished it. */
  finished(name: string): OutputFile | undefined;
  /** Writes a large file. */
  write(file: NewFile, body: FileBody): Promise<void>;
  /** Writes a file that belongs to the large ones. */
  writeCompanion(name: string, bytes: Uint8Array): Promise<void>;
  /** Gives all files their final names, in the order in which they were begun. */
  commit(): Promise<void>;
  /** Forgets all files; `resumable` keeps those that a later run of the same merge need not write again. */
  abort(resumable: boolean): Promise<void>;
}

/** Files of any sink; nothing outlives the process. */
export class Transaction implements MergeOutput {
  readonly #sink: Sink;
  readonly #open: SinkFile[] = [];
  readonly #files: Map<string, OutputFile | null> = new Map();

  /** Wraps a sink. */
  constructor(sink: Sink) {
    this.#sink = sink;
  }

  /** See {@linkcode MergeOutput.files}. */
  get files(): readonly OutputFile[] {
    return [...this.#files.values()].filter((file) => file !== null);
  }

  /** Nothing. */
  finished(): undefined {}

  /** See {@linkcode MergeOutput.write}. */
  async write({ name, bytes }: NewFile, body: FileBody): Promise<void> {
    this.#files.set(name, null);
    const file = await this.#sink.create(name, { bytes });
    this.#open.push(file);
    this.#files.set(name, await fill(file, name, body));
  }

  /** See {@linkcode MergeOutput.writeCompanion}. */
  async writeCompanion(name: string, bytes: Uint8Array): Promise<void> {
    await this.write({ name, bytes: bytes.length }, (write) => write(bytes));
  }

  /** See {@linkcode MergeOutput.commit}. */
  async commit(): Promise<void> {
    for (const file of this.#open) await file.commit();
  }

  /** See {@linkcode MergeOutput.abort}. */
  async abort(): Promise<void> {
    await Promise.allSettled(this.#open.map((file) => file.abort()));
  }
}

/** Fills a new file and tells what is in it; its owner commits it. */
export async function fill(file: SinkFile, name: string, body: FileBody): Promise<OutputFile> {
  let bytes = 0;
  await body(async (piece) => {
    await file.write(piece);
    bytes += piece.length;
  });
  return { name, bytes, sha256: await file.sha256?.() ?? null };
}
