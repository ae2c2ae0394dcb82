import { setImmediate } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Backend } from "../backend.ts";
import { CACHE_DTYPES, type CacheDtype } from "../cache.ts";
import { type LanguageModel, loadModel, MODEL_DTYPES, type ModelDtype } from "../models/mod.ts";
import { adapterArguments, adapterMix, checkAdapterPath, modelArgument } from "./arguments.ts";
import { choiceOption, numberOption, requiredOption, threadsOption } from "./options.ts";
import { type Command, UsageError } from "./command.ts";
import { type DeviceChoice, DEVICES, openDevice } from "./device.ts";
import { type AdapterOverBase, overBase } from "./plain_adapter.ts";
import { Progress } from "./progress.ts";
import { formatDuration, isTerminal, paint, print, printable, printJson } from "./terminal.ts";

const HELP = `Answer a prompt with a model, as it is or through adapters.

Usage: lora generate --model MODEL [--adapter ADAPTER[=WEIGHT]]… --prompt TEXT [OPTION]…

  --model MODEL         Hugging Face folder, or a .gguf file, or its URL
  --adapter ADAPTER     PEFT folder or URL; several are mixed, each with its weight (1 if none is given)
  --initial ADAPTER     the adapter as it was before training, where its initialisation changed the base and the base
                        does not tell how (CorDA, LoRA-GA, PiSSA by a random SVD); one for each --adapter, in order
  --residual-base       the model is the changed base that the adapters' initialisation left
  --prompt TEXT         text to continue; with --chat, what the user says
  --chat                wrap the prompt in the model's chat template
  --max-new-tokens N    stop after N tokens (128)
  --temperature T       0 takes the likeliest token each time (0)
  --top-k N             sample among the N likeliest tokens
  --top-p P             sample among the likeliest tokens that together have probability P
  --min-p P             sample among those with P times the probability of the likeliest
  --seed N              start of the random numbers: the same seed gives the same text
  --dtype DTYPE         the weights in memory: f32, bf16, f16, f8, int8, int4, nf4, or auto: a quantized .gguf file's
                        own Q4_0, Q4_1 and Q8_0 matrices, all else bf16 (auto)
  --cache DTYPE         the keys and values of past tokens in memory: f32, f16 (half as much) or int8 (a quarter) (f32)
  --device auto|wasm|webgpu
                        where to compute (auto: a GPU where there is one and the model is large enough for it); Node and
                        Bun have one where npm webgpu is installed
  --threads auto|N      threads of WebAssembly up to 32 (auto: one per core, 8 at most)
  --json                { text, tokens, promptTokens, tokensPerSecond, loadMs, backend }: tokens are the new ids, their
                        rate is that after the first one, backend is what computed them and why
`;

const OPTIONS = {
  model: { type: "string" },
  adapter: { type: "string", multiple: true, default: [] as string[] },
  initial: { type: "string", multiple: true, default: [] as string[] },
  "residual-base": { type: "boolean", default: false },
  prompt: { type: "string", multiple: true, default: [] as string[] },
  chat: { type: "boolean", default: false },
  "max-new-tokens": { type: "string" },
  temperature: { type: "string" },
  "top-k": { type: "string" },
  "top-p": { type: "string" },
  "min-p": { type: "string" },
  seed: { type: "string" },
  dtype: { type: "string" },
  cache: { type: "string" },
  device: { type: "string" },
  threads: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

interface Request {
  readonly model: string;
  readonly adapters: readonly AdapterOverBase[];
  readonly prompt: string;
  readonly json: boolean;
  readonly dtype: ModelDtype;
  readonly cache: CacheDtype;
  readonly device: DeviceChoice;
  readonly threads: number | "auto";
  readonly sampling: {
    readonly chat: boolean;
    readonly maxNewTokens: number;
    readonly temperature: number;
    readonly topK?: number;
    readonly topP?: number;
    readonly minP?: number;
    readonly seed?: number;
  };
}

async function parseRequest(args: string[]): Promise<Request> {
  const { values } = parseArgs({ args, options: OPTIONS });
  if (values.prompt.length > 1) {
    throw new UsageError(`Cannot answer ${values.prompt.length} prompts at once: one --prompt is wanted`);
  }
  const { initial, "residual-base": residualBase } = values;
  const topK = numberOption(values["top-k"], "top-k", { min: 1, whole: true });
  const topP = numberOption(values["top-p"], "top-p", { above: 0, max: 1 });
  const minP = numberOption(values["min-p"], "min-p", { min: 0, max: 1 });
  const seed = numberOption(values.seed, "seed", { min: 0, whole: true });
  return {
    model: requiredOption(values.model, "model"),
    prompt: requiredOption(values.prompt[0], "prompt"),
    adapters: await overBase(adapterArguments(values.adapter), { initial, residualBase }),
    json: values.json,
    dtype: choiceOption(values.dtype, "dtype", MODEL_DTYPES) ?? "auto",
    cache: choiceOption(values.cache, "cache", CACHE_DTYPES) ?? "f32",
    device: choiceOption(values.device, "device", DEVICES) ?? "auto",
    threads: threadsOption(values.threads),
    sampling: {
      chat: values.chat,
      maxNewTokens: numberOption(values["max-new-tokens"], "max-new-tokens", { min: 1, whole: true }) ?? 128,
      temperature: numberOption(values.temperature, "temperature", { min: 0 }) ?? 0,
      ...(topK !== undefined && { topK }),
      ...(topP !== undefined && { topP }),
      ...(minP !== undefined && { minP }),
      ...(seed !== undefined && { seed }),
    },
  };
}

async function answer(model: LanguageModel, request: Request, signal: AbortSignal) {
  const times: number[] = [performance.now()];
  const { json, prompt, sampling, adapters } = request;
  const adapter = adapterMix(adapters);
  const generation = model.generate(prompt, {
    ...sampling,
    adapter,
    signal,
    onToken: () => times.push(performance.now()),
  });
  const shown = isTerminal("stdout") ? printable : (piece: string) => piece;
  let text = "";
  for await (const piece of generation) {
    text += piece;
    if (json) continue;
    print(shown(piece));
    // Lets Ctrl-C and a closed pipe be noticed between two tokens.
    await setImmediate();
  }
  const { tokens, promptTokens } = generation;
  return { text, tokens, promptTokens, tokensPerSecond: decodeRate(times) };
}

/** Tokens per second after the first one, whose time is that of reading the prompt. */
function decodeRate(times: readonly number[]): number {
  const [start = 0, first = start, ...rest] = times;
  const last = rest.at(-1);
  return last === undefined ? (times.length - 1) * 1000 / (first - start || 1) : rest.length * 1000 / (last - first);
}

async function load(request: Request, backend: Backend | undefined, signal: AbortSignal): Promise<LanguageModel> {
  const progress = new Progress("Loading");
  const onProgress = progress.update.bind(progress);
  const { dtype, cache, threads } = request;
  const options = { dtype, cache, threads, signal, onProgress, ...(backend && { backend }) };
  const model = await loadModel(await modelArgument(request.model), options).finally(() => progress.end());
  try {
    for (const { name, source, initial, residualBase } of request.adapters) {
      const base = { ...(initial && { initial }), ...(residualBase && { residualBase }) };
      await model.loadAdapter(name, source, { ...base, signal });
    }
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** `lora generate` */
export const generate: Command = {
  help: HELP,
  async run(args, signal) {
    const request = await parseRequest(args);
    for (const adapter of request.adapters) await checkAdapterPath(adapter);
    const start = performance.now();
    const backend = await openDevice(request.device, request.threads);
    let model: LanguageModel | undefined;
    try {
      model = await load(request, backend, signal);
      const loadMs = performance.now() - start;
      const { name, info } = model.backend;
      const result = { ...await answer(model, request, signal), loadMs, backend: { name, ...info } };
      if (request.json) return printJson(result);
      print("\n");
      if (!isTerminal("stderr")) return;
      const rate = `${result.tokensPerSecond.toFixed(1)} tokens/s`;
      const counts = `${result.promptTokens} + ${result.tokens.length} tokens`;
      print(paint("dim", `${counts}, ${rate} on ${name}, loaded in ${formatDuration(loadMs)}\n`, "stderr"), "stderr");
    } finally {
      model?.dispose();
      backend?.dispose();
    }
  },
};
