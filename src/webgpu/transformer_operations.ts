/**
 * The operations of transformers on the GPU: each a check, an output and its dispatches.
 *
 * @module
 */

import type { AttentionOptions, Cache, Tensor, Weight } from "../backend.ts";
import { ShapeError } from "../errors.ts";
import * as check from "../check.ts";
import { checkAppend, checkAttention } from "../check_cache.ts";
import { checkLayerNorm } from "../check_rows.ts";
import { PackedCache, wordsOf } from "../packed_cache.ts";
import { DTYPE_CODES } from "../wasm/dtypes.ts";
import { codeOf } from "./forms.ts";
import { cutPanels } from "./handles.ts";
import { WebGpuLinearOperations } from "./linear_operations.ts";
import { GROUP } from "./memory_operations.ts";

/** The window of attention that is not causal, in `wgsl/attention.wgsl`. */
const EVERYTHING = 2 ** 32 - 1;

/** What a transformer needs beside linear layers. */
export abstract class WebGpuTransformerOperations extends WebGpuLinearOperations {
  /** See `Backend.embedding`. */
  embedding(ids: Uint32Array, table: Weight): Tensor {
    const [n, k] = table.shape;
    check.checkIndices("embedding", "ids", ids, n);
    const { live, form } = this.packed(table);
    return this.live.create([ids.length, k], (y) =>
      this.live.indices(ids, (rows) => {
        for (const { first, count, parts } of cutPanels(live)) {
          this.queue.dispatch({
            shader: "embedding",
            constants: { FORM: codeOf(form) },
            buffers: [rows, parts[0]!.buffer, y],
            groups: Math.ceil(ids.length * k / GROUP),
            integers: [ids.length, k, first, count],
          });
        }
      }));
  }

  /** See `Backend.takeRows`. */
  takeRows(x: Tensor, rows: Uint32Array): Tensor {
    const [, dim] = check.checkTakeRows(x, rows);
    const input = this.at(x);
    const shape = [rows.length, dim];
    return this.live.indices(rows, (at) => {
      return this.elements(shape, rows.length * dim, { shader: "take_rows", buffers: [input, at], integers: shape });
    });
  }

  /** See `Backend.rmsNorm`. */
  rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor {
    const [rows, dim] = check.checkRmsNorm(x, gain, eps);
    const buffers = [this.at(x), this.at(gain)];
    return this.run(x.shape, { shader: "rms_norm", buffers, groups: rows, integers: [dim], floats: [eps] });
  }

  /** See `Backend.layerNorm`. */
  layerNorm(x: Tensor, gain: Tensor, bias: Tensor, eps: number): Tensor {
    const [rows, dim] = checkLayerNorm(x, gain, bias, eps);
    const buffers = [this.at(x), this.at(gain), this.at(bias)];
    return this.run(x.shape, { shader: "layer_norm", buffers, groups: rows, integers: [dim], floats: [eps] });
  }

  /** See `Backend.rope`. */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
    const { rows, heads, half } = check.checkRope(x, cos, sin);
    const pairs = rows * heads * half;
    const buffers = [this.at(x), this.at(cos), this.at(sin)];
    return this.elements(x.shape, pairs, { shader: "rope", buffers, integers: [pairs, heads, half] });
  }

  /** See `Backend.append`. */
  append(cache: Tensor | Cache, x: Tensor | Cache, past: number): void {
    const { batch, capacity, length, heads, d, dtype } = checkAppend(cache, x, past);
    const { shape: [sequences = 0, , words = 0] } = wordsOf(cache);
    const buffers = [this.at(wordsOf(x)), this.at(wordsOf(cache))];
    if (!(cache instanceof PackedCache) || x instanceof PackedCache) {
      const size = sequences * length * words;
      const integers = [size, length, capacity, words, past];
      return this.queue.dispatch({ shader: "append", buffers, groups: Math.ceil(size / GROUP), integers });
    }
    this.queue.dispatch({
      shader: "append_heads",
      constants: { CACHE: DTYPE_CODES[dtype] },
      buffers,
      groups: batch * length * heads,
      integers: [length, capacity, heads, d, past],
    });
  }

  /** See `Backend.attention`. */
  attention(q: Tensor, keys: Tensor | Cache, values: Tensor | Cache, options: AttentionOptions): Tensor {
    const { length, capacity, d, dtype } = checkAttention(q, keys, values, options);
    const { heads, kvHeads, batch, past } = options;
    const window = options.causal === false ? EVERYTHING : Math.min(options.window ?? 0, EVERYTHING - 1);
    const slabs = Math.ceil(d / 256);
    return this.run(q.shape, {
      shader: "attention",
      constants: { CACHE: DTYPE_CODES[dtype], BY_HEAD: keys instanceof PackedCache ? 1 : 0 },
      buffers: [this.at(q), this.at(wordsOf(keys)), this.at(wordsOf(values))],
      groups: batch * length * heads * slabs,
      integers: [length, capacity, heads, kvHeads, d, past, window, slabs],
      floats: [1 / Math.sqrt(d)],
    });
  }

  /** See `Backend.siluMul`. */
  siluMul(gate: Tensor, up: Tensor): Tensor {
    check.checkSame("siluMul", ["gate", gate], ["up", up]);
    const buffers = [this.at(gate), this.at(up)];
    return this.elements(gate.shape, gate.size, { shader: "silu_mul", buffers, integers: [gate.size] });
  }

  /** See `Backend.gelu`. */
  gelu(x: Tensor, approximation?: "tanh"): Tensor {
    return this.#activation(x, approximation ? 1 : 0);
  }

  /** See `Backend.tanh`. */
  tanh(x: Tensor): Tensor {
    return this.#activation(x, 2);
  }

  #activation(x: Tensor, kind: number): Tensor {
    const dispatch = { shader: "activation", buffers: [this.at(x)], integers: [x.size] } as const;
    return this.elements(x.shape, x.size, { ...dispatch, constants: { KIND: kind } });
  }

  /** See `Backend.add`. */
  add(x: Tensor, y: Tensor): Tensor {
    check.checkSame("add", ["x", x], ["y", y]);
    const buffers = [this.at(x), this.at(y)];
    return this.elements(x.shape, x.size, { shader: "add", buffers, integers: [x.size] });
  }

  /** See `Backend.crossEntropy`. */
  crossEntropy(logits: Tensor, targets: Uint32Array): Tensor {
    const [rows, classes] = check.checkCrossEntropy(logits, targets);
    if (rows > 0 && classes === 0) throw new ShapeError("Cannot run crossEntropy with 0 classes: expected at least 1");
    const input = this.at(logits);
    return this.live.indices(
      targets,
      (at) => this.run([rows], { shader: "cross_entropy", buffers: [input, at], groups: rows, integers: [classes] }),
    );
  }
}
