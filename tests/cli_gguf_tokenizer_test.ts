import assert from "node:assert/strict";
import { test } from "node:test";
import { ggufTokenizerFiles } from "../src/cli/gguf_tokenizer_files.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { GGUF_WORDS } from "../src/text/gguf_words.ts";
import { ggufTokenizer, loadTokenizer } from "../src/text/mod.ts";
import { smollm2Metadata } from "./vectors/text/load.ts";

const TEXT = "Review: 12345 it's  DON'T fine+=\n\n\té e\u0301漢字🤖 <|im_end|>$9";

/** Where the kinds differ: numbers, contractions, signs and line ends that could be one token. */
const MERGES = ["1 2", "12 3", "123 4", "1234 5", "' T", "+ =", "Ċ Ċ", "ĊĊ ĉ"];

/** SmolLM2's special tokens and bytes, with these merges. */
function smallMetadata() {
  const metadata = smollm2Metadata();
  const merged = MERGES.map((merge) => merge.replace(" ", ""));
  const tokens = [...(metadata.get("tokenizer.ggml.tokens") as string[]).slice(0, 17 + 256), ...merged];
  const types = (metadata.get("tokenizer.ggml.token_type") as number[]).slice(0, tokens.length);
  return new Map([
    ...metadata,
    ["tokenizer.ggml.tokens", tokens] as const,
    ["tokenizer.ggml.token_type", types] as const,
    ["tokenizer.ggml.merges", MERGES] as const,
  ]);
}

test("the files of a GGUF tokenizer give its ids, for words of every kind", async () => {
  const metadata = smallMetadata();
  const seen = new Set<string>();
  for (const pre of [...GGUF_WORDS.keys(), undefined]) {
    if (pre === undefined) metadata.delete("tokenizer.ggml.pre");
    else metadata.set("tokenizer.ggml.pre", pre);
    const { files, report } = ggufTokenizerFiles(metadata, "a.gguf");
    assert.deepEqual(report, []);
    const [written, own] = [await loadTokenizer(memoryFolder(files)), ggufTokenizer(metadata)];
    const ids = own.encode(TEXT, { addSpecial: true });
    assert.deepEqual(written.encode(TEXT, { addSpecial: true }), ids, pre);
    assert.equal(written.decode(ids), own.decode(ids), pre);
    seen.add(ids.join());
  }
  assert.equal(seen.size, 6, "kinds that split this text alike");
});

test("a GGUF tokenizer of another kind has no files, and the report says why", () => {
  const metadata = new Map([["tokenizer.ggml.model", "gpt2"], ["tokenizer.ggml.pre", "viking"]]);
  const { files, report } = ggufTokenizerFiles(metadata, "a.gguf");
  assert.deepEqual([files.size, report.length], [0, 1]);
  assert.match(report[0]!.what, /"viking"/);
});
