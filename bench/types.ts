/** What one run of the bench measures and keeps: the shape of bench/results/*.json. */
import type { Times } from "../src/cli/bench_timing.ts";
import type { TimedBound } from "../src/cli/bench.ts";

/** What `--only` chooses from, in the order of the report. */
export const TOPICS = ["gemm", "gemv", "lora", "merge", "decode", "prefill", "accuracy", "binary"] as const;
export type Topic = typeof TOPICS[number];

/** Who computes: a library, what runs it, and on how many threads. */
export interface Party {
  /** npm's or PyPI's name of the library; `lora` is this package. */
  readonly party: string;
  /** The version of the library. */
  readonly version?: string;
  /** What runs it, with its version. */
  readonly engine: string;
  readonly threads: number;
}

/** Work of one run; which of them there are decides the unit of the rate. */
export interface Work {
  readonly flop?: number;
  /** Weight bytes that have to be read. */
  readonly bytes?: number;
  readonly tokens?: number;
}

/** A timed figure. */
export interface Measurement {
  readonly topic: Topic;
  /** Sizes, rows x inputs x outputs, or the model. */
  readonly name: string;
  /** Number format, and what else tells it from figures of the same name: `f32`, `f32 r=16`, `q4_1 + LoRA`. */
  readonly variant: string;
  readonly work: Work;
  readonly times: Times;
  /** The same without adapters, in turns with it. */
  readonly base?: Times;
  /** What the silicon allows, in turns with it. */
  readonly limits?: readonly TimedBound[];
}

/** Numbers that are no times. */
export interface Facts {
  readonly topic: Topic;
  readonly name: string;
  readonly variant: string;
  readonly values: Readonly<Record<string, number>>;
}

/** What a party could not do, and its own words for why. */
export interface Absence {
  readonly topic: Topic;
  readonly variant: string;
  readonly error: string;
}

export type Figure = Party & Measurement;
export type Fact = Party & Facts;
export type Absent = Party & Absence;

/** One line of a child's output. */
export type Message =
  | { readonly kind: "engine"; readonly engine: string; readonly version?: string }
  | ({ readonly kind: "figure" } & Measurement)
  | ({ readonly kind: "fact" } & Facts)
  | ({ readonly kind: "absent" } & Absence);

/** A process to run. */
export interface Job {
  readonly party: string;
  readonly script: string;
  /** What runs the script. */
  readonly engine: "Node 24" | "Deno" | "Bun" | "Python";
  readonly threads: number;
  readonly topics: readonly Topic[];
  readonly quick: boolean;
  /** Number format of a model, or what else the script takes. */
  readonly variant: string;
  /** Seconds after which it is ended. */
  readonly limit: number;
  /** The cache folder of the setup scripts. */
  readonly home: string;
  /** A folder for temporary files, which ends with the run. */
  readonly scratch: string;
}

/** The machine, as far as a run can tell. */
export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGB: number;
  readonly system: string;
}

/** One run: everything that the report is made of. */
export interface Run {
  readonly date: string;
  readonly commit: string;
  readonly quick: boolean;
  readonly only: readonly Topic[];
  readonly seconds: number;
  readonly machine: Machine;
  /** Load average when it began: above zero, others were at work. */
  readonly load: number;
  readonly figures: readonly Figure[];
  readonly facts: readonly Fact[];
  readonly absent: readonly Absent[];
}
