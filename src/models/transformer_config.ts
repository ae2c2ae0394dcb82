/** The numbers that every model has. */
export interface TransformerConfig {
  /** Width of the residual stream. */
  readonly hiddenSize: number;
  /** Width of the feed-forward branch. */
  readonly intermediateSize: number;
  /** Number of layers. */
  readonly layers: number;
  /** Heads; where keys and values have fewer, those of the queries. */
  readonly heads: number;
  /** Rows of the embedding. */
  readonly vocabSize: number;
  /** Positions that have an embedding, or that the model was made for. */
  readonly maxPositions: number;
  /** Epsilon of every norm. */
  readonly normEps: number;
}

/** The numbers that every causal language model has. */
export interface CausalConfig extends TransformerConfig {
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Width of one head. */
  readonly headDim: number;
  /** The embedding serves as head. */
  readonly tiedHead: boolean;
  /** Ids that end a text; empty where the config names none. */
  readonly eosIds: readonly number[];
}
