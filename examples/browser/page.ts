/// <reference lib="dom" />
/**
 * A page that loads one base model, puts its adapters beside it, and lets each of them answer the same prompt.
 *
 * @module
 */

import { openBackend, urlFolder } from "@lowrank/lora";
import { type GenerateOptions, type LanguageModel, loadModel } from "@lowrank/lora/models";

interface Answer {
  readonly title: string;
  readonly about: string;
  readonly adapter: NonNullable<GenerateOptions["adapter"]> | null;
  /** What follows the prompt: the form that the adapter was trained on. */
  readonly suffix: string;
}

const MODELS = new URL("./models/tiny/", location.href);
const ADAPTERS = ["news", "tweets", "emotion"];
const ANSWERS: readonly Answer[] = [
  { title: "base", about: "the model alone, trained on reviews", adapter: null, suffix: "" },
  { title: "news", about: "trained on newspaper sentences", adapter: "news", suffix: "" },
  { title: "tweets", about: "trained on tweets", adapter: "tweets", suffix: "" },
  { title: "half news, half tweets", about: "a mix, made now", adapter: { news: 0.5, tweets: 0.5 }, suffix: "" },
  { title: "emotion", about: "says whether a review is good or bad", adapter: "emotion", suffix: "\nMood:" },
];

const form = element("form", HTMLFormElement);
const status = element("status", HTMLElement);
const progress = element("progress", HTMLProgressElement);
const generateButton = element("generate", HTMLButtonElement);
const stopButton = element("stop", HTMLButtonElement);
const deviceSelect = element("device", HTMLSelectElement);
const cards = ANSWERS.map(addCard);
let model: LanguageModel | undefined;
let running: AbortController | undefined;

function element<T extends HTMLElement>(id: string, kind: abstract new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`no ${kind.name} "${id}" in the page`);
  return found;
}

function addCard({ title, about }: Answer): HTMLElement {
  const template = element("answer", HTMLTemplateElement);
  const card = (template.content.cloneNode(true) as DocumentFragment).firstElementChild as HTMLElement;
  part(card, "h2").textContent = title;
  part(card, ".about").textContent = about;
  element("answers", HTMLElement).append(card);
  return card;
}

function part(card: HTMLElement, selector: string): HTMLElement {
  return card.querySelector<HTMLElement>(selector)!;
}

function say(text: string, failed = false): void {
  status.textContent = text;
  status.classList.toggle("failed", failed);
}

/** Opens the backend asked for, loads base and adapters, and lets the last model go. */
async function open(): Promise<void> {
  generateButton.disabled = deviceSelect.disabled = true;
  progress.classList.remove("done");
  model?.dispose();
  model = undefined;
  const started = performance.now();
  const backend = await openBackend({ prefer: deviceSelect.value as "auto" | "wasm" | "webgpu" });
  try {
    const loaded = await loadModel(urlFolder(new URL("base", MODELS)), {
      backend,
      onProgress: ({ loaded, total }) => progress.value = loaded / total,
    });
    for (const name of ADAPTERS) await loaded.loadAdapter(name, new URL(name, MODELS));
    model = loaded;
  } catch (error) {
    backend.dispose();
    throw error;
  }
  const { name, info } = backend;
  const ms = (performance.now() - started).toFixed(0);
  say(`Ready on ${name} (${info.variant}): one base and ${ADAPTERS.length} adapters loaded in ${ms} ms.`);
  progress.classList.add("done");
  generateButton.disabled = deviceSelect.disabled = false;
}

/** Lets every adapter answer, one after the other. */
async function answerAll(loaded: LanguageModel): Promise<void> {
  running = new AbortController();
  generateButton.disabled = deviceSelect.disabled = true;
  stopButton.disabled = false;
  for (const card of cards) part(card, ".text").textContent = part(card, ".speed").textContent = "";
  try {
    for (const [index, answer] of ANSWERS.entries()) {
      await write(loaded, answer, cards[index]!, running.signal);
    }
  } catch (error) {
    if (!running.signal.aborted) throw error;
  } finally {
    running = undefined;
    generateButton.disabled = deviceSelect.disabled = false;
    stopButton.disabled = true;
  }
}

async function write(loaded: LanguageModel, answer: Answer, card: HTMLElement, signal: AbortSignal): Promise<void> {
  const values = new FormData(form);
  const prompt = `${values.get("prompt")}${answer.suffix}`;
  const text = part(card, ".text");
  const written = document.createElement("b");
  text.append(prompt, written);
  card.classList.add("active");
  const started = performance.now();
  const pieces = loaded.generate(`<|end|>${prompt}`, {
    adapter: answer.adapter,
    maxNewTokens: answer.suffix ? 1 : Number(values.get("tokens")),
    temperature: Number(values.get("temperature")),
    signal,
  });
  try {
    for await (const piece of pieces) written.append(piece);
    const count = pieces.tokens.length;
    const ms = (performance.now() - started) / Math.max(count, 1);
    part(card, ".speed").textContent = `${count} ${count === 1 ? "token" : "tokens"}, ${ms.toFixed(1)} ms each`;
  } finally {
    card.classList.remove("active");
  }
}

function attempt(task: () => Promise<void>): void {
  task().catch((error: unknown) => say(error instanceof Error ? error.message : String(error), true));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (model && !running) attempt(() => answerAll(model!));
});
stopButton.addEventListener("click", () => running?.abort());
deviceSelect.addEventListener("change", () =>
  attempt(async () => {
    try {
      await open();
    } finally {
      deviceSelect.disabled = false;
    }
  }));
attempt(open);
