/**
 * What every operation means: naive float64 loops under the names of `Backend`. Slow and plain on purpose, so that it
 * can be checked by reading; the backends are measured against it.
 *
 * @module
 */

/** A row-major matrix in float64. */
export interface Matrix {
  readonly shape: readonly [rows: number, columns: number];
  readonly values: Float64Array;
}

export interface Branch {
  readonly a: Matrix;
  readonly b: Matrix;
  readonly scaling: number;
}

export interface RowBranches {
  readonly start: number;
  readonly end: number;
  readonly branches: readonly Branch[];
}

export interface AttentionOptions {
  readonly heads: number;
  readonly kvHeads: number;
  readonly batch: number;
  readonly past: number;
  readonly window?: number;
  readonly causal?: boolean;
}

export function matrix(rows: number, columns: number, element: (row: number, column: number) => number): Matrix {
  const values = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) values[i * columns + j] = element(i, j);
  }
  return { shape: [rows, columns], values };
}

export function at(m: Matrix, row: number, column: number): number {
  const [rows, columns] = m.shape;
  if (!(row >= 0 && row < rows && column >= 0 && column < columns)) {
    throw new RangeError(`Cannot read [${row}, ${column}] of a reference matrix of shape [${rows}, ${columns}]`);
  }
  return m.values[row * columns + column]!;
}

/** a (m, k) times b (k, n). */
export function product(a: Matrix, b: Matrix): Matrix {
  const [depth, columns] = b.shape;
  return matrix(a.shape[0], columns, (i, j) => {
    let sum = 0;
    for (let k = 0; k < depth; k++) sum += a.values[i * depth + k]! * b.values[k * columns + j]!;
    return sum;
  });
}

export function transpose(m: Matrix): Matrix {
  return matrix(m.shape[1], m.shape[0], (i, j) => at(m, j, i));
}

export function scaled(m: Matrix, factor: number): Matrix {
  return matrix(...m.shape, (i, j) => factor * at(m, i, j));
}

export function absolute(m: Matrix): Matrix {
  return matrix(...m.shape, (i, j) => Math.abs(at(m, i, j)));
}

export function add(x: Matrix, y: Matrix): Matrix {
  return matrix(...x.shape, (i, j) => at(x, i, j) + at(y, i, j));
}

export function rowRange(m: Matrix, start: number, end: number): Matrix {
  return matrix(end - start, m.shape[1], (i, j) => at(m, start + i, j));
}

function addToRows(target: Matrix, start: number, part: Matrix): void {
  const columns = target.shape[1];
  part.values.forEach((value, i) => target.values[start * columns + i]! += value);
}

/** y = x Wᵀ + bias + Σ s (x Aᵀ) Bᵀ. */
export function linear(
  x: Matrix,
  w: Matrix,
  { bias, adapters = [] }: { bias?: Matrix; adapters?: readonly RowBranches[] } = {},
): Matrix {
  const base = product(x, transpose(w));
  const y = bias ? matrix(...base.shape, (i, j) => at(base, i, j) + at(bias, 0, j)) : base;
  for (const { start, end, branches } of adapters) {
    for (const { a, b, scaling } of branches) {
      const xa = product(rowRange(x, start, end), transpose(a));
      addToRows(y, start, scaled(product(xa, transpose(b)), scaling));
    }
  }
  return y;
}

export interface LinearGradients {
  readonly dx: Matrix;
  readonly dw: Matrix;
  readonly dbias: Matrix;
  /** Per row range, per branch. */
  readonly adapters: readonly (readonly { readonly da: Matrix; readonly db: Matrix }[])[];
}

/** dxa = s dy B, dB = s dyᵀ xa, dA = dxaᵀ x, dx = dy W + Σ dxa A, dW = dyᵀ x, dbias = column sums of dy. */
export function linearBackward(dy: Matrix, x: Matrix, w: Matrix, adapters: readonly RowBranches[]): LinearGradients {
  const dx = product(dy, w);
  const ones = matrix(1, dy.shape[0], () => 1);
  const gradients = adapters.map(({ start, end, branches }) => {
    const xRows = rowRange(x, start, end);
    const dyRows = rowRange(dy, start, end);
    return branches.map(({ a, b, scaling }) => {
      const xa = product(xRows, transpose(a));
      const dxa = scaled(product(dyRows, b), scaling);
      addToRows(dx, start, product(dxa, a));
      return { da: product(transpose(dxa), xRows), db: scaled(product(transpose(dyRows), xa), scaling) };
    });
  });
  return { dx, dw: product(transpose(dy), x), dbias: product(ones, dy), adapters: gradients };
}

/** ΔW = s B A. */
export function deltaWeight({ a, b, scaling }: Branch): Matrix {
  return scaled(product(b, a), scaling);
}

/** W' = W + Σ s B A. */
export function merge(w: Matrix, branches: readonly Branch[]): Matrix {
  return branches.reduce((sum, branch) => add(sum, deltaWeight(branch)), w);
}

export function embedding(ids: Uint32Array, table: Matrix): Matrix {
  return takeRows(table, ids);
}

export function takeRows(x: Matrix, rows: Uint32Array): Matrix {
  return matrix(rows.length, x.shape[1], (i, j) => at(x, rows[i]!, j));
}

/** y = x / sqrt(mean(x²) + eps) ∘ gain. */
export function rmsNorm(x: Matrix, gain: Matrix, eps: number): Matrix {
  const dim = gain.shape[1];
  return matrix(...x.shape, (i, j) => {
    const first = j - j % dim;
    let squares = 0;
    for (let k = 0; k < dim; k++) squares += at(x, i, first + k) ** 2;
    return at(x, i, j) / Math.sqrt(squares / dim + eps) * at(gain, 0, j % dim);
  });
}

/** (u cos − v sin, v cos + u sin) per head with halves (u, v). */
export function rope(x: Matrix, cos: Matrix, sin: Matrix): Matrix {
  const half = cos.shape[1];
  return matrix(...x.shape, (i, j) => {
    const k = j % half;
    const isFirstHalf = j % (2 * half) < half;
    return isFirstHalf
      ? at(x, i, j) * at(cos, i, k) - at(x, i, j + half) * at(sin, i, k)
      : at(x, i, j) * at(cos, i, k) + at(x, i, j - half) * at(sin, i, k);
  });
}

/** cache (batch · capacity, dim) with x (batch · length, dim) at positions past … past + length of each sequence. */
export function append(cache: Matrix, x: Matrix, batch: number, past: number): Matrix {
  const capacity = cache.shape[0] / batch;
  const length = x.shape[0] / batch;
  return matrix(...cache.shape, (row, j) => {
    const position = row % capacity - past;
    const sequence = Math.floor(row / capacity);
    return position >= 0 && position < length ? at(x, sequence * length + position, j) : at(cache, row, j);
  });
}

/** softmax(q kᵀ / sqrt d) v; keys and values (batch · capacity, kvHeads · d). */
export function attention(q: Matrix, keys: Matrix, values: Matrix, options: AttentionOptions): Matrix {
  const { heads, kvHeads, batch, past, window = Infinity, causal = true } = options;
  const d = q.shape[1] / heads;
  const length = q.shape[0] / batch;
  const capacity = keys.shape[0] / batch;
  const weightsOf = (row: number, head: number, kvColumn: number, from: number, to: number): number[] => {
    const scores = [];
    for (let t = from; t < to; t++) {
      let score = 0;
      for (let k = 0; k < d; k++) score += at(q, row, head * d + k) * at(keys, t, kvColumn + k);
      scores.push(score / Math.sqrt(d));
    }
    return softmax(scores);
  };
  const y = matrix(...q.shape, () => 0);
  for (let row = 0; row < q.shape[0]; row++) {
    const first = Math.floor(row / length) * capacity;
    const end = past + (causal ? row % length + 1 : length);
    const start = Math.max(0, end - window);
    for (let head = 0; head < heads; head++) {
      const kvColumn = Math.floor(head / (heads / kvHeads)) * d;
      const weights = weightsOf(row, head, kvColumn, first + start, first + end);
      for (let k = 0; k < d; k++) {
        weights.forEach((weight, t) => {
          y.values[row * q.shape[1] + head * d + k]! += weight * at(values, first + start + t, kvColumn + k);
        });
      }
    }
  }
  return y;
}

function softmax(scores: readonly number[]): number[] {
  const max = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - max));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** gate / (1 + e^−gate) ∘ up. */
export function siluMul(gate: Matrix, up: Matrix): Matrix {
  return matrix(...gate.shape, (i, j) => at(gate, i, j) / (1 + Math.exp(-at(gate, i, j))) * at(up, i, j));
}

/** log Σ e^logits − logits[target] per row, as (1, n). */
export function crossEntropy(logits: Matrix, targets: Uint32Array): Matrix {
  const [n, classes] = logits.shape;
  return matrix(1, n, (_, i) => {
    let max = -Infinity;
    for (let j = 0; j < classes; j++) max = Math.max(max, at(logits, i, j));
    let sum = 0;
    for (let j = 0; j < classes; j++) sum += Math.exp(at(logits, i, j) - max);
    return max + Math.log(sum) - at(logits, i, targets[i]!);
  });
}

/** Index of the greatest logit per row, the first among equals; −1 where one is NaN or the greatest is infinite. */
export function argmax(logits: Matrix): number[] {
  return Array.from({ length: logits.shape[0] }, (_, i) => {
    const row = rowOf(logits, i);
    const best = row.indexOf(Math.max(...row));
    return Number.isFinite(row[best]) ? best : -1;
  });
}

/** Draws per row with uniform numbers in [0, 1), in the order of the indices, among what the filters leave of a sort. */
export function sample(
  logits: Matrix,
  { temperature, topK = Infinity, topP = 1, minP = 0, uniform }: {
    readonly temperature: number;
    readonly topK?: number;
    readonly topP?: number;
    readonly minP?: number;
    readonly uniform: readonly number[];
  },
): number[] {
  return argmax(logits).map((best, i) => {
    if (best < 0) return -1;
    const row = rowOf(logits, i);
    const weights = row.map((logit) => Math.exp((logit - row[best]!) / temperature));
    const sum = (ids: readonly number[]) => ids.reduce((total, id) => total + weights[id]!, 0);
    const sorted = [...row.keys()].sort((a, b) => row[b]! - row[a]! || a - b).slice(0, topK);
    let mass = 0;
    const need = topP * sum(sorted);
    const last = sorted.findIndex((id) => (mass += weights[id]!) >= need);
    const nucleus = topP < 1 ? sorted.slice(0, last + 1) : sorted;
    const candidates = nucleus.filter((id) => weights[id]! >= minP).sort((a, b) => a - b);
    let left = uniform[i]! * sum(candidates);
    return candidates.find((id) => (left -= weights[id]!) < 0) ?? best;
  });
}

function rowOf({ shape: [, columns], values }: Matrix, row: number): number[] {
  return Array.from({ length: columns }, (_, j) => values[row * columns + j]!);
}
