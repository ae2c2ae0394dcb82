import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { LimitError } from "../src/errors.ts";
import { file } from "../src/fs/mod.ts";
import { readGguf } from "../src/formats/gguf.ts";
import { ggufTokenizer } from "../src/text/mod.ts";
import { GGUF, NEEDS_GGUF, readCases } from "./smollm2.ts";
import { fromFiles, random, small, smollm2Metadata, tiny, tokenizers } from "./vectors/text/load.ts";

const all = tokenizers();

test("encode() gives the ids of the Rust tokenizers, for ten tokenizers and seventy texts", async () => {
  for (const { name, tokenizer, want } of await all) {
    for (const [text, ids] of want.rows) {
      assert.deepEqual(tokenizer.encode(text), ids, `${name}: ${JSON.stringify(text)}`);
    }
  }
});

test("encode() without special tokens gives the ids of the Rust tokenizers and never a special id", async () => {
  for (const { name, tokenizer, want } of await all) {
    want.rows.forEach(([text], index) => {
      const ids = tokenizer.encode(text, { special: false });
      assert.deepEqual(ids, want.plain[index], `${name}: ${JSON.stringify(text)}`);
    });
  }
});

test("encode() adds what transformers adds around a text, when asked to", async () => {
  for (const { name, tokenizer, want } of await all) {
    const around = want.around ?? tokenizer.encode("Hello");
    assert.deepEqual(tokenizer.encode("Hello", { addSpecial: true }), around, name);
  }
});

test("decode() gives the text of the Rust tokenizers", async () => {
  for (const { name, tokenizer, want } of await all) {
    for (const [, ids, text] of want.rows) assert.equal(tokenizer.decode(ids), text, name);
  }
});

test("stream() emits the text of the Rust tokenizers in whole characters", async () => {
  for (const { name, tokenizer, want } of await all) {
    const stream = tokenizer.stream();
    for (const [, ids, text] of want.rows) {
      const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
      assert.equal(pieces.join(""), text, name);
      assert.ok(pieces.every((piece) => piece.isWellFormed()), name);
    }
  }
});

test("stream() emits decode()'s text for random ids, broken characters too", async () => {
  const next = random(1);
  for (const { name, tokenizer } of await all) {
    const stream = tokenizer.stream();
    for (let round = 0; round < 40; round++) {
      const ids = Array.from({ length: next(30) }, () => next(Math.min(tokenizer.vocabSize, 400)));
      const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
      assert.equal(pieces.join(""), tokenizer.decode(ids), name);
    }
  }
});

test("stream() holds an emoji back until its last byte", async () => {
  for (const { name, tokenizer } of await all) {
    // Its decoder has no bytes: it shows them as "<0xF0>", as the Rust tokenizers do.
    if (name === "metaspace_split") continue;
    const ids = tokenizer.encode("a👩‍👩‍👧é");
    const stream = tokenizer.stream();
    const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
    assert.ok(ids.length > 4, name);
    assert.ok(pieces.every((piece) => !piece.includes("\ufffd") && piece.isWellFormed()), name);
    assert.equal(pieces.join("").trimStart(), "a👩‍👩‍👧é", name);
  }
});

test("stream() ends an unfinished character with U+FFFD and begins anew", async () => {
  const tokenizer = await tiny();
  const [byte] = tokenizer.encode("👍");
  const stream = tokenizer.stream();
  assert.equal(stream.push(byte!) + stream.end(), "\ufffd");
  assert.equal(stream.push(tokenizer.encode("a")[0]!) + stream.end(), "a");
});

test("decode() leaves special tokens out when asked to", () => {
  const tokenizer = ggufTokenizer(smollm2Metadata());
  const ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>");
  assert.equal(tokenizer.decode(ids), "<|im_start|>user\nhi<|im_end|>");
  assert.equal(tokenizer.decode(ids, { skipSpecial: true }), "user\nhi");
});

test("decode() refuses ids outside the vocabulary", async () => {
  const tokenizer = await tiny();
  for (const id of [-1, 1.5, NaN, tokenizer.vocabSize]) {
    assert.throws(() => tokenizer.decode([id]), { name: "RangeError", message: /^Cannot decode token/ });
  }
});

test("encode() refuses a text beyond the cap, and what is no text", async () => {
  const tokenizer = await tiny();
  assert.throws(() => tokenizer.encode("a ".repeat(2_000_001)), LimitError);
  assert.throws(() => tokenizer.encode("a".repeat(1_000_001)), LimitError);
  assert.throws(() => tokenizer.encode(7 as unknown as string), TypeError);
});

test("encode() keeps a special token plain even where merges spell it", async () => {
  const file = structuredClone(small().files.qwen2) as {
    model: { vocab: Record<string, number>; merges: string[][] };
    added_tokens: Record<string, unknown>[];
  };
  const id = file.model.vocab["th"]!;
  file.added_tokens.push({ id, content: "th", special: true, normalized: false });
  const tokenizer = await fromFiles({ "tokenizer.json": file });
  assert.deepEqual(tokenizer.encode("th"), [id]);
  const plain = tokenizer.encode("th", { special: false });
  assert.ok(!plain.includes(id));
  assert.equal(tokenizer.decode(plain), "th");
});

test("loadTokenizer() reads the tiny model's tokenizer as transformers does", async () => {
  const tokenizer = await tiny();
  const want = JSON.parse(readFileSync(new URL("../examples/models/tiny/expected.json", import.meta.url), "utf8"));
  assert.deepEqual([tokenizer.vocabSize, tokenizer.bosId, tokenizer.eosIds, tokenizer.addsBos], [2048, 0, [0], false]);
  for (const { prompt, promptIds, tokens, text } of want.greedy) {
    assert.deepEqual([tokenizer.bosId, ...tokenizer.encode(prompt)], promptIds);
    assert.equal(tokenizer.decode(tokens), text);
  }
});

test("loadTokenizer() stops at the tokenizer's and the generation config's ids", async () => {
  const files = { "tokenizer.json": small().files.qwen2, "config.json": { eos_token_id: 9, bos_token_id: 8 } };
  const plain = await fromFiles(files);
  assert.deepEqual([plain.bosId, plain.eosIds], [8, [9]]);
  const tokenizer = await fromFiles({
    ...files,
    "tokenizer_config.json": '{ "model_max_length": 1000000000000000019884624838656, "bos_token": "<|endoftext|>" }',
    "special_tokens_map.json": { eos_token: { content: "<|im_end|>" } },
    "generation_config.json": { eos_token_id: [5, 3, 5] },
  });
  assert.deepEqual([tokenizer.bosId, tokenizer.eosIds], [0, [3, 5, tokenizer.encode("<|im_end|>")[0]]]);
});

test("ggufTokenizer() gives SmolLM2's ids and answers", () => {
  const tokenizer = ggufTokenizer(smollm2Metadata());
  assert.deepEqual([tokenizer.vocabSize, tokenizer.bosId, tokenizer.eosIds, tokenizer.addsBos], [49152, 1, [2], false]);
  for (const { text, promptIds, tokens, answer } of readCases()) {
    assert.deepEqual(tokenizer.encode(text), promptIds);
    assert.equal(tokenizer.decode(tokens), answer);
  }
});

test("ggufTokenizer() reads the real SmolLM2 file", NEEDS_GGUF, async () => {
  const { metadata } = await readGguf(file(GGUF));
  const tokenizer = ggufTokenizer(metadata);
  for (const { text, promptIds } of readCases()) assert.deepEqual(tokenizer.encode(text), promptIds);
});
