import { isFiniteTensor } from "../formats/float_bits.ts";
import type { Backend } from "../backend.ts";
import { NumericError } from "../errors.ts";
import {
  bitsPerElement,
  type Dtype,
  type FloatDtype,
  fromFloat32,
  type StoredTensor,
  toFloat32,
} from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { HeldSource, ReadOptions } from "../formats/source.ts";
import { sizeOf } from "../shape.ts";
import type { FilePlan, TensorPlan } from "./file_plan.ts";
import { RowMerger } from "./merge_rows.ts";
import { ahead, forEachOf } from "./overlap.ts";
import type { MergeTarget } from "./merge_plan.ts";
import type { FileBody, MergeOutput } from "./transaction.ts";

/** How far a merge is. */
export interface MergeProgress {
  /** Bytes of the base that are done. */
  readonly loaded: number;
  /** Bytes of all its tensors. */
  readonly total: number;
  /** Bytes of `loaded` that an earlier run did. */
  readonly kept: number;
  /** The tensor at work. */
  readonly name: string;
}

/**
 * Elements per piece of rows, bytes of any other piece. 1 MiB of bf16 stays in the second cache from reading to hashing:
 * 1.15x over pieces four times as large (CPU time, measured).
 */
const PIECE = 2 ** 19;

/** What a {@linkcode WeightFileWriter} works with. */
export interface WeightFileParts {
  /** The files to write. */
  readonly files: readonly FilePlan[];
  /** What becomes of each tensor that changes. */
  readonly targets: ReadonlyMap<string, MergeTarget>;
  /** Where deltas are computed. */
  readonly backend: Backend;
  /** Where the files go. */
  readonly output: MergeOutput;
  /** Files written at a time. */
  readonly jobs: number;
  /** Is told after every piece. */
  readonly onProgress?: ((progress: MergeProgress) => void) | undefined;
}

/** Writes the weight files of a merged checkpoint. */
export class WeightFileWriter {
  readonly #parts: WeightFileParts;
  readonly #total: number;
  #loaded = 0;
  #kept = 0;

  /** Takes parts whose plan has been checked. */
  constructor(parts: WeightFileParts) {
    this.#parts = parts;
    this.#total = parts.files.reduce((sum, file) => sum + dataBytes(file), 0);
  }

  /** Writes all files but those that an earlier run finished. */
  async run(options: ReadOptions): Promise<void> {
    const { files, output, jobs } = this.#parts;
    await forEachOf(files, jobs, options, async (file, options) => {
      if (output.finished(file.name)) this.#skip(file);
      else await output.write(file, (write) => this.#writeFile(file, write, options));
    });
  }

  async #writeFile(file: FilePlan, write: Parameters<FileBody>[0], options: ReadOptions): Promise<void> {
    const source = await file.open(options);
    let merger: RowMerger | null = null;
    let current: TensorPlan | null = null;
    let writing = write(file.header);
    const results = new Buffers(2); // one is filled while the other is written
    try {
      for await (
        const { tensor, row, bytes, isLast } of ahead(readPieces(source, file.tensors, this.#parts.targets, options))
      ) {
        if (tensor !== current) {
          merger?.[Symbol.dispose]();
          merger = this.#open(tensor);
          current = tensor;
          if (merger?.needsMeasuring) await this.#measure(source, tensor, merger, options);
        }
        const done = await transform(tensor, row, bytes, { merger, columns: this.#columns(tensor), results });
        await writing;
        writing = write(tensor.padding && isLast ? padded(done, tensor.padding) : done);
        this.#advance(bytes.length, tensor.name);
      }
      await writing;
    } finally {
      await writing.catch(() => {}); // its error is thrown above
      merger?.[Symbol.dispose]();
      await source.close();
    }
  }

  #open({ name }: TensorPlan): RowMerger | null {
    const target = this.#parts.targets.get(name);
    return target && isMerged(target) ? new RowMerger(this.#parts.backend, target) : null;
  }

  /** Elements per row of what is read, where the tensor is merged. */
  #columns({ name }: TensorPlan): number | undefined {
    const target = this.#parts.targets.get(name);
    return target && isMerged(target) ? target.columns / target.groups : undefined;
  }

  /** Reads a tensor once more, for norms that run over all its rows. */
  async #measure(source: HeldSource, tensor: TensorPlan, merger: RowMerger, options: ReadOptions): Promise<void> {
    const columns = this.#columns(tensor);
    for await (const { row, bytes } of readPieces(source, [tensor], this.#parts.targets, options)) {
      await merger.measure(row, elementsOf(tensor, bytes, columns));
    }
  }

  #skip(file: FilePlan): void {
    this.#kept += dataBytes(file);
    this.#advance(dataBytes(file), file.name);
  }

  #advance(bytes: number, name: string): void {
    this.#loaded += bytes;
    this.#parts.onProgress?.({ loaded: this.#loaded, total: this.#total, kept: this.#kept, name });
  }
}

/** Whether more happens to a tensor than that it is copied or replaced. */
function isMerged({ steps, rows, groups }: MergeTarget): boolean {
  return steps.length > 0 || rows.length > 0 || groups > 1;
}

function dataBytes({ tensors }: FilePlan): number {
  return tensors.reduce((sum, { length }) => sum + length, 0);
}

function padded(bytes: Uint8Array, zeros: number): Uint8Array {
  const longer = new Uint8Array(bytes.length + zeros);
  longer.set(bytes);
  return longer;
}

/** Memory that is used in turn: engines are slow to see that large arrays are garbage. */
class Buffers {
  readonly #buffers: Uint8Array[];
  #turn = 0;

  constructor(count: number) {
    this.#buffers = Array.from({ length: count }, () => new Uint8Array());
  }

  next(length: number): Uint8Array {
    this.#turn = (this.#turn + 1) % this.#buffers.length;
    if (this.#buffers[this.#turn]!.length < length) this.#buffers[this.#turn] = new Uint8Array(length);
    return this.#buffers[this.#turn]!.subarray(0, length);
  }
}

interface Piece {
  /** Whether the tensor ends with it. */
  readonly isLast: boolean;
  readonly tensor: TensorPlan;
  readonly row: number;
  readonly bytes: Uint8Array;
}

/** Reads tensors in pieces: of whole rows where the elements change, else of bytes whatever the shape. */
async function* readPieces(
  source: HeldSource,
  tensors: readonly TensorPlan[],
  targets: ReadonlyMap<string, MergeTarget>,
  options: ReadOptions,
): AsyncGenerator<Piece> {
  // One is read while another is merged and, where nothing changes, a third is written.
  const buffers = new Buffers(3);
  for (const tensor of tensors) {
    const { name, shape, offset, length, decode, encode, values } = tensor;
    const target = targets.get(name);
    const isTarget = target !== undefined && isMerged(target);
    const byRows = shape.length > 0 && (decode || encode || isTarget);
    const columns = isTarget ? target.columns / target.groups : byRows ? shape.at(-1)! : 1;
    const width = byRows ? length * columns / sizeOf(shape) : 1;
    const step = Math.max(1, Math.floor(PIECE / columns));
    for (let row = 0; row * width < length; row += step) {
      const [start, count] = [offset + row * width, Math.min(step, length / width - row) * width];
      options.signal?.throwIfAborted();
      const bytes = values?.subarray(start, start + count) ?? buffers.next(count);
      if (!values) await source.readInto(start, bytes, options);
      yield { tensor, row, bytes, isLast: start + count === offset + length };
    }
  }
}

/** The elements of a piece, as rows of `columns`, or as one row. */
function elementsOf({ from, decode }: TensorPlan, bytes: Uint8Array, columns?: number): StoredTensor {
  const elements = decode ? decode(bytes) : bytes;
  const count = elements.length * 8 / bitsPerElement(from);
  const width = columns ?? count;
  return { dtype: from, shape: [count / width, width], bytes: elements };
}

/** What a piece is merged with. */
interface Tools {
  readonly merger: RowMerger | null;
  readonly columns: number | undefined;
  readonly results: Buffers;
}

async function transform(
  tensor: TensorPlan,
  row: number,
  bytes: Uint8Array,
  { merger, columns, results }: Tools,
): Promise<Uint8Array> {
  const { name, to, encode } = tensor;
  const piece = elementsOf(tensor, bytes, columns);
  const into = () => results.next(piece.bytes.length * bitsPerElement(to) / bitsPerElement(tensor.from));
  const done = merger
    ? await merger.merge(row, piece, { dtype: to as FloatDtype, tensor: name, into: into() })
    : convert(piece, to, name);
  return encode ? encode(done) : done;
}

/** Gives a tensor in another dtype; what was not finite stays so, what becomes so is refused. */
function convert(piece: StoredTensor, dtype: Dtype, name: string): Uint8Array {
  if (piece.dtype === dtype) return piece.bytes;
  const values = toFloat32(piece);
  const stored = fromFloat32(values, piece.shape, dtype as FloatDtype);
  if (isFiniteTensor(stored)) return stored.bytes;
  const rounded = toFloat32(stored);
  if (values.every((value, i) => Number.isFinite(rounded[i]) || !Number.isFinite(value))) return stored.bytes;
  const message = `Cannot convert tensor ${quote(name)} from ${piece.dtype} to ${dtype}: a value would become infinite`;
  throw new NumericError(`${message}, expected f32 or bf16`, { tensor: name, found: piece.dtype });
}
