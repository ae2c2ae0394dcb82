/** A decoder of the Llama architecture as an ONNX graph with a KV cache, out of ONNX Runtime's own fused operators. */
import type { LlamaConfig } from "../../src/models/llama_config.ts";
import { inverseFrequencies, ropeRows } from "../../src/models/rope.ts";
import { GraphBuilder } from "./model.ts";
import type { Bytes } from "./protobuf.ts";
import { type OnnxFormat, ProductWriter } from "./products.ts";

/** The model's numbers, and its tensors by Hugging Face's names. */
export interface LlamaTensors {
  readonly config: LlamaConfig;
  tensor(name: string): Float32Array;
}

const POSITIONS = 1024;

/** Builds the graph: ids and the caches so far in, logits of the last position and the caches out. */
export class LlamaGraph {
  readonly #graph: GraphBuilder = new GraphBuilder();
  readonly #products: ProductWriter;
  readonly #model: LlamaTensors;
  readonly #attention: readonly string[];

  /** Declares the inputs. */
  constructor(model: LlamaTensors, format: OnnxFormat) {
    const graph = this.#graph;
    const { headDim } = model.config;
    this.#model = model;
    this.#products = new ProductWriter(graph, format);
    graph.input("ids", "i64", [1, "length"]);
    const lengths = [graph.input("lastPosition", "i32", [1]), graph.input("positions", "i32", [1])];
    const rows = ropeRows(inverseFrequencies(model.config), { length: POSITIONS, pasts: [0] });
    const angles = [rows.cos, rows.sin].map((values) => graph.weight("f32", [POSITIONS, headDim / 2], values));
    this.#attention = [...lengths, ...angles];
  }

  /** The model's file. */
  build(): Bytes {
    const graph = this.#graph;
    const { layers, hiddenSize, vocabSize } = this.#model.config;
    const values = this.#model.tensor("model.embed_tokens.weight");
    const embedding = graph.weight("f32", [vocabSize, hiddenSize], values);
    let x = graph.node("Gather", [embedding, "ids"]);
    for (let layer = 0; layer < layers; layer++) x = this.#layer(x, layer);
    const last = graph.node("Gather", [x, graph.weight("i64", [], BigInt64Array.of(-1n))], { axis: 1 });
    const head = { name: embedding, values, inputs: hiddenSize, outputs: vocabSize };
    this.#products.head(this.#normalize(last, "model.norm.weight"), head, "logits");
    graph.output("logits", "f32", [1, vocabSize]);
    return graph.build();
  }

  #layer(x: string, layer: number): string {
    const { hiddenSize, intermediateSize } = this.#model.config;
    const graph = this.#graph;
    const path = `model.layers.${layer}`;
    const attended = this.#attend(this.#normalize(x, `${path}.input_layernorm.weight`), layer);
    const middle = graph.node("Add", [x, attended]);
    const h = this.#normalize(middle, `${path}.post_attention_layernorm.weight`);
    const gate = this.#product(h, `${path}.mlp.gate_proj`, hiddenSize, intermediateSize);
    const up = this.#product(h, `${path}.mlp.up_proj`, hiddenSize, intermediateSize);
    const gated = graph.node("Mul", [graph.node("Mul", [gate, graph.node("Sigmoid", [gate])]), up]);
    return graph.node("Add", [middle, this.#product(gated, `${path}.mlp.down_proj`, intermediateSize, hiddenSize)]);
  }

  #attend(h: string, layer: number): string {
    const { hiddenSize, heads, kvHeads, headDim } = this.#model.config;
    const graph = this.#graph;
    const path = `model.layers.${layer}.self_attn`;
    const sizes = { q: heads * headDim, k: kvHeads * headDim, v: kvHeads * headDim };
    const rows = Object.entries(sizes).map(([name, size]) =>
      this.#product(h, `${path}.${name}_proj`, hiddenSize, size)
    );
    const past = ["keys", "values"].map((kind) =>
      graph.input(`${kind}.${layer}`, "f32", [1, kvHeads, "past", headDim])
    );
    const present = ["keys", "values"].map((kind) =>
      graph.output(`new.${kind}.${layer}`, "f32", [1, kvHeads, "total", headDim])
    );
    const attributes = { num_heads: heads, kv_num_heads: kvHeads, do_rotary: 1 };
    const outputs = [`attended.${layer}`, ...present];
    const y = graph.contrib("GroupQueryAttention", [...rows, ...past, ...this.#attention], attributes, outputs);
    return this.#product(y, `${path}.o_proj`, heads * headDim, hiddenSize);
  }

  #product(x: string, name: string, inputs: number, outputs: number): string {
    return this.#products.product(x, { values: this.#model.tensor(`${name}.weight`), inputs, outputs });
  }

  #normalize(x: string, name: string): string {
    const gain = this.#graph.weight("f32", [this.#model.config.hiddenSize], this.#model.tensor(name));
    const attributes = { axis: -1, epsilon: { f: this.#model.config.normEps } };
    return this.#graph.node("SimplifiedLayerNormalization", [x, gain], attributes);
  }
}
