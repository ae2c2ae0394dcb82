import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, LimitError, MismatchError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import type { GgufValue } from "../src/formats/gguf.ts";
import { ggufTokenizer, loadTokenizer } from "../src/text/mod.ts";
import { fromFiles, small } from "./vectors/text/load.ts";

type Json = Record<string, unknown>;

/** A small tokenizer.json with one member replaced. */
function changed(path: string, value: unknown): Json {
  const file = structuredClone(small().files.qwen2!);
  const keys = path.split(".");
  let place = file as Json;
  for (const key of keys.slice(0, -1)) place = place[key] as Json;
  place[keys.at(-1)!] = value;
  return file;
}

const split = (more: Json) => ({
  type: "Split",
  pattern: { Regex: "a" },
  behavior: "Isolated",
  invert: false,
  ...more,
});

const UNSUPPORTED: [path: string, value: unknown, field: string][] = [
  ["model.type", "Unigram", "model.type"],
  ["model.type", "WordPiece", "model.unk_token"],
  ["model.dropout", 0.1, "model.dropout"],
  ["model.end_of_word_suffix", "</w>", "model.end_of_word_suffix"],
  ["model.continuing_subword_prefix", "##", "model.continuing_subword_prefix"],
  ["model.unk_token", "<none>", "model.unk_token"],
  ["normalizer", { type: "Prepend", prepend: "x".repeat(17) }, "normalizer.prepend"],
  ["normalizer", { type: "Sequence", normalizers: Array(33).fill({ type: "NFC" }) }, "normalizer.normalizers"],
  ["model.vocab", { a: -1 }, "model.vocab"],
  ["model.vocab", { a: 2 ** 30 }, "model.vocab"],
  ["model.vocab", [["a", 0]], "model.vocab"],
  ["model.merges", ["a b c"], "model.merges[0]"],
  ["model.merges", [["a", "none"]], "model.merges[0]"],
  ["normalizer", { type: "Precompiled" }, "normalizer.type"],
  ["normalizer", { type: "Sequence", normalizers: [{ type: "Lowercase" }] }, "normalizer.normalizers[0].type"],
  ["pre_tokenizer", { type: "Whitespace" }, "pre_tokenizer.type"],
  ["pre_tokenizer", split({ behavior: "MergedWithNext" }), "pre_tokenizer.behavior"],
  ["pre_tokenizer", split({ invert: true }), "pre_tokenizer.behavior"],
  ["pre_tokenizer", split({ pattern: { Regex: "\\Ga" } }), "pre_tokenizer.pattern.Regex"],
  ["pre_tokenizer", split({ pattern: { Regex: "a++" } }), "pre_tokenizer.pattern.Regex"],
  ["pre_tokenizer", split({ pattern: { Regex: "(?>a)" } }), "pre_tokenizer.pattern.Regex"],
  ["pre_tokenizer", split({ pattern: { Regex: "(a" } }), "pre_tokenizer"],
  ["pre_tokenizer", split({ pattern: {} }), "pre_tokenizer.pattern"],
  ["decoder", null, "decoder"],
  ["decoder", { type: "CTC" }, "decoder.type"],
  ["decoder", { type: "Sequence", decoders: [{ type: "Fuse" }, { type: "ByteFallback" }] }, "decoder.decoders[1].type"],
  ["post_processor", { type: "Other" }, "post_processor.type"],
  ["pre_tokenizer", { type: "Sequence", pretokenizers: Array(33).fill(split({})) }, "pre_tokenizer.pretokenizers"],
  ["decoder", {
    type: "Sequence",
    decoders: [{ type: "Replace", pattern: { String: "a" }, content: "a".repeat(17) }],
  }, "decoder.decoders[0].content"],
  ["post_processor", {
    type: "TemplateProcessing",
    single: Array(2000).fill({ SpecialToken: { id: "x" } }),
    special_tokens: { x: { ids: [1] } },
  }, "post_processor.single"],
  ["added_tokens", [{ id: "0", content: "a" }], "added_tokens[0].id"],
  ["added_tokens", [{ id: 0, content: "" }], "added_tokens[0].content"],
];

test("loadTokenizer() refuses what it does not support and names it", async () => {
  for (const [path, value, field] of UNSUPPORTED) {
    await assert.rejects(fromFiles({ "tokenizer.json": changed(path, value) }), (error: FormatError) => {
      assert.ok(error instanceof FormatError, `${path}: ${error}`);
      assert.deepEqual([error.file, error.field], ["tokenizer.json", field]);
      return /^Cannot read "tokenizer.json" with .*: expected /.test(error.message);
    });
  }
});

test("loadTokenizer() accepts patterns with quantifiers in classes and after escapes", async () => {
  const tokenizer = await fromFiles({
    "tokenizer.json": changed("pre_tokenizer.pretokenizers.0", split({ pattern: { Regex: "[*+]+|\\*+|x" } })),
  });
  assert.equal(tokenizer.decode(tokenizer.encode("a**+x")), "a**+x");
});

test("loadTokenizer() refuses a folder without tokenizer.json and files that are no JSON", async () => {
  await assert.rejects(fromFiles({}), MismatchError);
  await assert.rejects(fromFiles({ "tokenizer.json": "{" }), FormatError);
  await assert.rejects(fromFiles({ "tokenizer.json": "[]" }), FormatError);
  const good = small().files.qwen2;
  await assert.rejects(
    fromFiles({ "tokenizer.json": good, "generation_config.json": { eos_token_id: "2" } }),
    FormatError,
  );
  await assert.rejects(fromFiles({ "tokenizer.json": good, "tokenizer_config.json": { bos_token: 1 } }), FormatError);
});

test("loadTokenizer() stops when the signal is aborted", async () => {
  const reason = new Error("enough");
  await assert.rejects(loadTokenizer(memoryFolder(new Map()), { signal: AbortSignal.abort(reason) }), reason);
});

const GGUF: [key: string, value: GgufValue | undefined][] = [
  ["model", undefined],
  ["model", "bert"],
  ["tokens", undefined],
  ["tokens", ["a", 1]],
  ["tokens", ["a", "b", "a"]],
  ["scores", [0]],
  ["scores", undefined],
  ["token_type", [1]],
  ["bos_token_id", 1_000_000],
  ["eos_token_id", -1],
  ["eos_token_id", "5"],
  ["bos_token_id", []],
  ["remove_extra_whitespaces", true],
];

test("ggufTokenizer() refuses metadata that it does not support and names the field", () => {
  for (const [key, value] of GGUF) {
    const field = `tokenizer.ggml.${key}`;
    const metadata = new Map(Object.entries(small().gguf));
    if (value === undefined) metadata.delete(field);
    else metadata.set(field, value);
    assert.throws(() => ggufTokenizer(metadata), (error: FormatError) => {
      return error instanceof FormatError && error.field === field && error.message.includes(field);
    }, `${key} = ${value}`);
  }
});

test("ggufTokenizer() refuses an unknown pre-tokenizer by name, broken merges and a huge vocabulary", () => {
  const metadata = new Map<string, GgufValue>([
    ["tokenizer.ggml.model", "gpt2"],
    ["tokenizer.ggml.tokens", ["a", "b", "ab"]],
    ["tokenizer.ggml.merges", ["a b"]],
  ]);
  assert.deepEqual(ggufTokenizer(metadata).encode("ab"), [2]);
  assert.throws(() => ggufTokenizer(new Map([...metadata, ["tokenizer.ggml.pre", "viking"]])), /"viking"/);
  assert.throws(() => ggufTokenizer(new Map([...metadata, ["tokenizer.ggml.merges", ["b a"]]])), /merges\[0\]/);
  const many = Array.from({ length: (1 << 20) + 1 }, () => "a");
  assert.throws(() => ggufTokenizer(new Map([...metadata, ["tokenizer.ggml.tokens", many]])), LimitError);
});

test("a tokenizer.json cannot make text or memory grow without bounds", async () => {
  const twice = { type: "Replace", pattern: { String: "a" }, content: "aa" };
  const growing = changed("normalizer", { type: "Sequence", normalizers: Array(32).fill(twice) });
  const tokenizer = await fromFiles({ "tokenizer.json": growing });
  assert.throws(() => tokenizer.encode("a"), { name: "LimitError", field: "normalizer" });
  const long = changed("added_tokens", [{ id: 0, content: "a".repeat(600_000) }]);
  await assert.rejects(fromFiles({ "tokenizer.json": long }), { name: "LimitError", field: "added_tokens" });
});

test("ggufTokenizer() refuses a token whose cuts would take minutes", () => {
  const { gguf } = small();
  const grown = (key: string, value: GgufValue): [string, GgufValue] => {
    const field = `tokenizer.ggml.${key}`;
    return [field, [...gguf[field] as GgufValue[], value]];
  };
  const more = [grown("tokens", "ab".repeat(100_000)), grown("scores", 0), grown("token_type", 1)];
  const metadata = new Map([...Object.entries(gguf), ...more]);
  assert.throws(() => ggufTokenizer(metadata), { name: "LimitError", field: "tokenizer.ggml.tokens" });
});

test("chat() gives up on a template that takes too many steps", async () => {
  const doubling = (value: string, sign: string) =>
    `{% set ns = namespace(x=${value}) %}{% for i in range(60) %}{% set ns.x = ns.x ${sign} ns.x %}{% endfor %}`;
  const templates = [
    "{% set l = range(9000) %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    doubling("[1]", "+"),
    doubling("'x'", "~"),
    ...["ns.x[::-1]", "'y' in ns.x", "ns.x is upper", "ns.x.strip() == ''", "ns.x|trim|length"].map((read) =>
      `${doubling("'xxxxxxxx'", "~").replace("60", "20")}{% for i in range(3000) %}{% set y = ${read} %}{% endfor %}`
    ),
    `${doubling("[{'a': 1}]", "+").replace("60", "15")}{{ ns.x|sort(attribute="${"a.".repeat(20_000)}a")|length }}`,
  ];
  for (const template of templates) {
    const tokenizer = await fromFiles({ "tokenizer.json": small().files.qwen2!, "chat_template.jinja": template });
    assert.throws(() => tokenizer.chat([{ role: "user", content: "a" }]), {
      name: "FormatError",
      field: "chat_template",
      message: /takes more than 2000000 steps/,
    });
  }
  const pairs = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
  const chain = "{% set a = namespace(x=1) %}{% set b = namespace(x=[a, a]) %}{{ b.x|length }}";
  for (const template of [`${pairs}{{ ns.x }}`, `${pairs}{{ ns.x|tojson }}`, `${pairs}{{ ns.x ~ '' }}`, chain]) {
    const tokenizer = await fromFiles({ "tokenizer.json": small().files.qwen2!, "chat_template.jinja": template });
    assert.throws(() => tokenizer.chat([{ role: "user", content: "a" }]), {
      name: "FormatError",
      message: /takes more than 2000000 steps to be written|a namespace is held/,
    });
  }
  const long = Array.from({ length: 500 }, () => ({ role: "user", content: "word ".repeat(100) }));
  const template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}";
  const tokenizer = await fromFiles({ "tokenizer.json": small().files.qwen2!, "chat_template.jinja": template });
  assert.ok(tokenizer.chat(long).length > 50_000);
});

test("a letter with a megabyte of marks is refused, where sorting them would take minutes", async () => {
  const bert = {
    type: "BertNormalizer",
    clean_text: true,
    handle_chinese_chars: false,
    strip_accents: true,
    lowercase: true,
  };
  for (const normalizer of [{ type: "NFC" }, { type: "NFKD" }, bert]) {
    const tokenizer = await fromFiles({ "tokenizer.json": changed("normalizer", normalizer) });
    for (const pair of ["\u0301\u0327", "\u0301\u200b\u0327\u200b", "\u0301\uff9e"]) {
      // What lies between two marks is taken out by BERT's normalizer only, and made a mark by NFKD only.
      if ((pair.length > 2 && normalizer !== bert) || (pair.endsWith("\uff9e") && normalizer.type !== "NFKD")) continue;
      const limit = { name: "LimitError", field: "normalizer", limit: 1000 };
      assert.throws(() => tokenizer.encode(`e${pair.repeat(500_000)}`), limit, `${normalizer.type} ${pair}`);
    }
    assert.ok(tokenizer.encode(`e${"\u0301\u0327".repeat(500)}x`.repeat(20)).length > 0);
  }
});

test("decode() refuses replacements that grow without bounds, before they end the process", async () => {
  const twice = { type: "Replace", pattern: { String: "a" }, content: "aa" };
  const decoder = { type: "Sequence", decoders: Array(1000).fill(twice) };
  const tokenizer = await fromFiles({ "tokenizer.json": changed("decoder", decoder) });
  const ids = Array.from({ length: tokenizer.vocabSize }, (_, id) => id);
  assert.throws(() => tokenizer.decode(ids), { name: "LimitError", field: "decoder" });
});

test("encode() and chat() refuse texts that hold half of a long added token everywhere", async () => {
  const token = { id: 1, content: `${"<".repeat(20_000)}x`, special: true };
  const template = "{% for m in messages %}{{ m.content }}{% endfor %}";
  const tokenizer = await fromFiles({
    "tokenizer.json": changed("added_tokens", [token]),
    "chat_template.jinja": template,
  });
  const [text, limit] = ["<".repeat(60_000), { name: "LimitError", field: "added_tokens" }];
  assert.throws(() => tokenizer.encode(text), limit);
  assert.throws(() => tokenizer.chat([{ role: "user", content: text }]), limit);
  assert.deepEqual(tokenizer.encode(`${"<".repeat(20_000)}x`.repeat(3)), [1, 1, 1]);
});

test("encode() refuses a word that is too long for the engine's matcher by type", async () => {
  const grow = { type: "Replace", pattern: { String: "a" }, content: "b".repeat(16) };
  const tokenizer = await fromFiles({ "tokenizer.json": changed("normalizer", grow) });
  assert.throws(() => tokenizer.encode("a".repeat(500_000)), { name: "LimitError", limit: 1_000_000 });
});
