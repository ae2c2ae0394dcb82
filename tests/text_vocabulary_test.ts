/** Folders without tokenizer.json, beside what transformers says of them. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { memoryFolder } from "../src/formats/memory.ts";
import type { Folder } from "../src/formats/source.ts";
import { loadEncoder, loadModel } from "../src/models/mod.ts";
import { loadTokenizer } from "../src/text/mod.ts";
import { fixtureFiles } from "./adapter_fixtures.ts";

interface Vectors {
  readonly texts: readonly string[];
  /** The texts' ids, with what `addSpecial` adds and without. */
  readonly folders: Readonly<Record<string, { files: Files; ids: number[][]; plain: number[][] }>>;
}
/** A text as it is, anything else as JSON. */
type Files = Readonly<Record<string, unknown>>;

const path = new URL("vectors/text/vocabulary.json.gz", import.meta.url);
const { texts, folders }: Vectors = JSON.parse(gunzipSync(readFileSync(path)).toString());

function folderOf(files: Files, others: ReadonlyMap<string, Uint8Array> = new Map()): Folder {
  const bytes = (content: unknown) =>
    new TextEncoder().encode(typeof content === "string" ? content : JSON.stringify(content));
  const own = Object.entries(files).map(([name, content]) => [name, bytes(content)] as const);
  return memoryFolder(new Map([...others, ...own]), "model");
}

test("vocab.txt, and vocab.json with merges.txt, give the ids of transformers, whatever lies beside", async () => {
  assert.ok(Object.keys(folders).length >= 16);
  for (const [name, { files, ids, plain }] of Object.entries(folders)) {
    const tokenizer = await loadTokenizer(folderOf(files));
    texts.forEach((text, i) => {
      const what = `${name}: ${JSON.stringify(text)}`;
      assert.deepEqual(tokenizer.encode(text, { addSpecial: true }), ids[i], what);
      assert.deepEqual(tokenizer.encode(text), plain[i], what);
    });
  }
});

test("the class of the tokenizer decides before the type of the model, and one that is not known is refused", async () => {
  const { files } = folders.bert!;
  const japanese = { ...files, "tokenizer_config.json": { tokenizer_class: "BertJapaneseTokenizer" } };
  const refusal = { name: "MismatchError", code: "missing-file", found: "BertJapaneseTokenizer" };
  await assert.rejects(loadTokenizer(folderOf(japanese)), refusal);
  await assert.rejects(loadTokenizer(folderOf({})), { name: "MismatchError", missing: ["tokenizer.json"] });
  const { "merges.txt": _, ...halved } = folders.gpt2!.files;
  await assert.rejects(loadTokenizer(folderOf(halved)), { name: "MismatchError", found: "gpt2" });
});

test("a vocabulary without its token for unknown words, and a merge of no pieces, are refused by the file", async () => {
  const { files } = folders.bert!;
  const vocab = (files["vocab.txt"] as string).replace("[UNK]\n", "");
  const bare = loadTokenizer(folderOf({ ...files, "vocab.txt": vocab }));
  await assert.rejects(bare, { name: "FormatError", file: "vocab.txt", field: "model.unk_token", found: "[UNK]" });
  const merges = `${folders.gpt2!.files["merges.txt"]}nothing known\n`;
  const foreign = loadTokenizer(folderOf({ ...folders.gpt2!.files, "merges.txt": merges }));
  await assert.rejects(foreign, { name: "FormatError", found: "nothing known" });
  const list = loadTokenizer(folderOf({ ...folders.gpt2!.files, "vocab.json": [] }));
  await assert.rejects(list, { name: "FormatError", file: "vocab.json" });
  const ids = loadTokenizer(folderOf({ ...files, "added_tokens.json": { "<new>": "x" } }));
  await assert.rejects(ids, { name: "FormatError", field: "added_tokens[0].id" });
});

test("models find these vocabularies in their folders, and run without one that is not known", async () => {
  const fixture = (name: string) => fixtureFiles(`base/${name}`);
  const small = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n";
  const encoder = await loadEncoder(folderOf({ "vocab.txt": small }, fixture("bert")));
  assert.deepEqual(encoder.tokenizer!.encode("Hello worlds!", { addSpecial: true }), [2, 5, 6, 7, 1, 3]);
  encoder.dispose();
  const { files } = folders.gpt2!;
  const known = { "vocab.json": files["vocab.json"], "merges.txt": files["merges.txt"] };
  for (const [name, isKnown] of [["gpt2", true], ["qwen3", true], ["llama", false]] as const) {
    const model = await loadModel(folderOf(known, fixture(name)));
    assert.equal(model.tokenizer !== null, isKnown, name);
    model.dispose();
  }
});

test("a vocab.txt whose lines hold white space without end is read at once, and one of too many lines is refused", async () => {
  const { files } = folders.bert!;
  const start = performance.now();
  const spaces = `${files["vocab.txt"]}${" ".repeat(400_000)}x \u3000\n`;
  const { vocabSize } = await loadTokenizer(folderOf(files));
  assert.equal((await loadTokenizer(folderOf({ ...files, "vocab.txt": spaces }))).vocabSize, vocabSize + 1);
  assert.ok(performance.now() - start < 5000);
  const empty = loadTokenizer(folderOf({ ...files, "vocab.txt": "\n".repeat(2_000_000) }));
  await assert.rejects(empty, { name: "LimitError", file: "vocab.txt", value: 2_000_000 });
});
