/**
 * The operations of transformers on the CPU: each a check, an output and a kernel call.
 *
 * @module
 */

import type { AttentionOptions, Cache, Tensor, Weight } from "../backend.ts";
import { ShapeError } from "../errors.ts";
import * as check from "../check.ts";
import { checkAppend, checkAttention } from "../check_cache.ts";
import { checkLayerNorm } from "../check_rows.ts";
import { PackedCache, wordsOf } from "../packed_cache.ts";
import { BY_HEAD, DTYPE_CODES } from "./dtypes.ts";
import { WasmLinearOperations } from "./linear_operations.ts";

/** The window of attention that is not causal, in `rust-kernels/src/attention.rs`. */
const EVERYTHING = 2 ** 32 - 1;

/** What a transformer needs beside linear layers. */
export abstract class WasmTransformerOperations extends WasmLinearOperations {
  /** See `Backend.embedding`. */
  embedding(ids: Uint32Array, table: Weight): Tensor {
    const [n, k] = table.shape;
    check.checkIndices("embedding", "ids", ids, n);
    const [w, dtype] = this.weightAt(table);
    return this.memory.produce([ids.length, k], (y) => {
      this.memory.indices(ids, (at) => this.kernels.embedding(y, at, w, dtype, ids.length, n, k));
    });
  }

  /** See `Backend.takeRows`. */
  takeRows(x: Tensor, rows: Uint32Array): Tensor {
    const [, dim] = check.checkTakeRows(x, rows);
    const input = this.at(x);
    return this.memory.produce([rows.length, dim], (y) => {
      this.memory.indices(rows, (at) => this.kernels.take_rows(y, input, at, rows.length, dim));
    });
  }

  /** See `Backend.rmsNorm`. */
  rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor {
    const [rows, dim] = check.checkRmsNorm(x, gain, eps);
    const [input, gains] = [this.at(x), this.at(gain)];
    return this.memory.produce(x.shape, (y) => this.kernels.rms_norm(y, input, gains, rows, dim, eps));
  }

  /** See `Backend.layerNorm`. */
  layerNorm(x: Tensor, gain: Tensor, bias: Tensor, eps: number): Tensor {
    const [rows, dim] = checkLayerNorm(x, gain, bias, eps);
    const inputs = [this.at(x), this.at(gain), this.at(bias)] as const;
    return this.memory.produce(x.shape, (y) => this.kernels.layer_norm(y, ...inputs, rows, dim, eps));
  }

  /** See `Backend.rope`. */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
    const { rows, heads, half } = check.checkRope(x, cos, sin);
    const [input, cosines, sines] = [this.at(x), this.at(cos), this.at(sin)];
    return this.memory.produce(x.shape, (y) => this.kernels.rope(y, input, cosines, sines, rows, heads, half));
  }

  /** See `Backend.append`. */
  append(cache: Tensor | Cache, x: Tensor | Cache, past: number): void {
    const { batch, capacity, length, heads, d, dtype } = checkAppend(cache, x, past);
    const { shape: [sequences = 0, , words = 0] } = wordsOf(cache);
    const [to, from] = [this.at(wordsOf(cache)), this.at(wordsOf(x))];
    if (cache instanceof PackedCache && !(x instanceof PackedCache)) {
      this.kernels.append_heads(to, from, batch, length, capacity, heads, d, past, DTYPE_CODES[dtype]);
    } else this.kernels.append(to, from, sequences, length, capacity, words, past);
  }

  /** See `Backend.attention`. */
  attention(q: Tensor, keys: Tensor | Cache, values: Tensor | Cache, options: AttentionOptions): Tensor {
    const { length, capacity, d, dtype } = checkAttention(q, keys, values, options);
    const { heads, kvHeads, batch, past } = options;
    const window = options.causal === false ? EVERYTHING : Math.min(options.window ?? 0, EVERYTHING - 1);
    const inputs = [this.at(q), this.at(wordsOf(keys)), this.at(wordsOf(values))] as const;
    const code = DTYPE_CODES[dtype] + (keys instanceof PackedCache ? BY_HEAD : 0);
    return this.memory.produce(q.shape, (y) => {
      this.memory.scratch(this.kernels.attention_scratch(length, past, heads, kvHeads, d), (scratch) => {
        const sizes = [length, capacity, heads, kvHeads, d, past, window, code] as const;
        this.kernels.attention(y, ...inputs, ...sizes, 0, batch * heads, scratch);
      });
    });
  }

  /** See `Backend.siluMul`. */
  siluMul(gate: Tensor, up: Tensor): Tensor {
    check.checkSame("siluMul", ["gate", gate], ["up", up]);
    const inputs = [this.at(gate), this.at(up)] as const;
    return this.memory.produce(gate.shape, (y) => this.kernels.silu_mul(y, ...inputs, gate.size));
  }

  /** See `Backend.gelu`. */
  gelu(x: Tensor, approximation?: "tanh"): Tensor {
    const { gelu, gelu_tanh } = this.kernels;
    const input = this.at(x);
    return this.memory.produce(x.shape, (y) => (approximation ? gelu_tanh : gelu)(y, input, x.size));
  }

  /** See `Backend.tanh`. */
  tanh(x: Tensor): Tensor {
    const input = this.at(x);
    return this.memory.produce(x.shape, (y) => this.kernels.tanh(y, input, x.size));
  }

  /** See `Backend.add`. */
  add(x: Tensor, y: Tensor): Tensor {
    check.checkSame("add", ["x", x], ["y", y]);
    const inputs = [this.at(x), this.at(y)] as const;
    return this.memory.produce(x.shape, (sum) => this.kernels.add(sum, ...inputs, x.size));
  }

  /** See `Backend.crossEntropy`. */
  crossEntropy(logits: Tensor, targets: Uint32Array): Tensor {
    const [rows, classes] = check.checkCrossEntropy(logits, targets);
    if (rows > 0 && classes === 0) throw new ShapeError("Cannot run crossEntropy with 0 classes: expected at least 1");
    const input = this.at(logits);
    return this.memory.produce([rows], (loss) => {
      this.memory.indices(targets, (at) => this.kernels.cross_entropy(loss, input, at, rows, classes));
    });
  }
}
