import type { Sink, SinkFile } from "../formats/source.ts";

/** Several files of a sink that appear together: none has its final name before `commit()`. */
export class Transaction {
  readonly #sink: Sink;
  readonly #open: Map<string, SinkFile> = new Map();
  #current: SinkFile | null = null;
  #bytes = 0;

  /** Wraps a sink. */
  constructor(sink: Sink) {
    this.#sink = sink;
  }

  /** Names of the files, in the order of their creation. */
  get files(): readonly string[] {
    return [...this.#open.keys()];
  }

  /** Bytes written to all files. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Begins a file; `write()` goes there from now on. */
  async create(name: string): Promise<void> {
    this.#current = await this.#sink.create(name);
    this.#open.set(name, this.#current);
  }

  /** Appends to the file begun last. */
  async write(bytes: Uint8Array): Promise<void> {
    await this.#current!.write(bytes);
    this.#bytes += bytes.length;
  }

  /** Gives all files their final names, in the order of their creation. */
  async commit(): Promise<void> {
    for (const file of this.#open.values()) await file.commit();
  }

  /** Forgets all files. */
  async abort(): Promise<void> {
    await Promise.allSettled([...this.#open.values()].map((file) => file.abort()));
  }
}
