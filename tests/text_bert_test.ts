/** BERT's tokenizers, beside what the Rust tokenizers say of the same files. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { FormatError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { loadEncoder } from "../src/models/mod.ts";
import { loadTokenizer, type Tokenizer } from "../src/text/mod.ts";

interface Kind {
  readonly file: { readonly model: Record<string, unknown> };
  /** A text, its ids between [CLS] and [SEP], their text, and the ids where special tokens are plain text. */
  readonly rows: readonly (readonly [text: string, ids: number[], decoded: string, plain: number[]])[];
}

const path = new URL("vectors/text/bert.json.gz", import.meta.url);
const kinds: Record<string, Kind> = JSON.parse(gunzipSync(readFileSync(path)).toString());

function load(file: unknown): Promise<Tokenizer> {
  return loadTokenizer(memoryFolder(new Map([["tokenizer.json", new TextEncoder().encode(JSON.stringify(file))]])));
}

test("BERT's texts have the ids of the Rust tokenizers, with their special tokens and without", async () => {
  for (const [name, { file, rows }] of Object.entries(kinds)) {
    const tokenizer = await load(file);
    for (const [text, ids, , plain] of rows) {
      const what = `${name}: ${JSON.stringify(text)}`;
      assert.deepEqual(tokenizer.encode(text, { addSpecial: true }), ids, what);
      assert.deepEqual(tokenizer.encode(text, { special: false }), plain, what);
    }
  }
});

test("BERT's ids have the text of the Rust tokenizers, whole and in a stream", async () => {
  for (const [name, { file, rows }] of Object.entries(kinds)) {
    const tokenizer = await load(file);
    const stream = tokenizer.stream();
    for (const [, ids, text] of rows) {
      assert.equal(tokenizer.decode(ids), text, name);
      assert.equal([...ids.map((id) => stream.push(id)), stream.end()].join(""), text, name);
    }
  }
});

test("a vocabulary of pieces without a token for unknown words, or of endless words, is refused", async () => {
  const { file } = kinds.uncased!;
  for (const change of [{ unk_token: null }, { unk_token: "none" }, { max_input_chars_per_word: 1e6 }]) {
    const [field] = Object.keys(change);
    await assert.rejects(load({ ...file, model: { ...file.model, ...change } }), (error: FormatError) => {
      return error instanceof FormatError && error.field === `model.${field}`;
    });
  }
});

test("loadEncoder() reads the tokenizer of its folder, whose ids it takes", async () => {
  const read = (name: string) => new Uint8Array(readFileSync(new URL(`fixtures/base/bert/${name}`, import.meta.url)));
  const vocab = { "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, hello: 4, world: 5, "##s": 6 };
  const file = { ...kinds.uncased!.file, model: { ...kinds.uncased!.file.model, vocab }, added_tokens: [] };
  const files = ["config.json", "model.safetensors"].map((name) => [name, read(name)] as const);
  const bytes = new TextEncoder().encode(JSON.stringify(file));
  const encoder = await loadEncoder(memoryFolder(new Map([...files, ["tokenizer.json", bytes]])));
  const ids = encoder.tokenizer!.encode("Hello worlds!", { addSpecial: true });
  assert.deepEqual(ids, [2, 4, 5, 6, 1, 3]);
  assert.deepEqual((await encoder.embed([ids])).shape, [1, encoder.config.hiddenSize]);
  encoder.dispose();
});
