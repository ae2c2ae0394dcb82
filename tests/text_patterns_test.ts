import assert from "node:assert/strict";
import { test } from "node:test";
import { boundedPattern } from "../src/text/bounded_pattern.ts";
import { PatternMachine } from "../src/text/pattern_machine.ts";
import { parseTree } from "../src/text/pattern_tree.ts";
import { fromFiles, small } from "./vectors/text/load.ts";

/** Patterns of real tokenizers, as the package gives them to the engine. */
const WIDESPREAD = [
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  "(?:'[sS]|'[tT])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lo}\\p{M}]+(?:'[sS])?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lo}\\p{M}]+" +
  "[\\p{Ll}\\p{Lo}\\p{M}]*(?:'[sS])?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "[!-/:-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "▁[^▁]*|[^▁]+",
  "[0-9][0-9][0-9]",
];

/** Patterns that engines may take the square of a text for, or forever. */
const SLOW = [
  "\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))",
  "[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+",
  "(a+)+b",
  "(a|a)*b|(?=(a|aa)*c)a",
  "a*a*a*b",
  "\\s*[\\r\\n]+",
];

const PIECES = ["a", "b", "ab", "c", "1", "23", " ", "\n", "é", "e\u0301", "日", "😀", "'s", "▁", "-"];

test("a pattern of a widespread tokenizer is left to the engine, one that it may hang in is not", () => {
  for (const source of WIDESPREAD) assert.equal(boundedPattern(new RegExp(source, "gu")).constructor, RegExp, source);
  for (const source of SLOW) assert.notEqual(boundedPattern(new RegExp(source, "gu")).constructor, RegExp, source);
});

test("a bounded pattern finds, splits and replaces what the engine's does", () => {
  let state = 1;
  const pick = (count: number) => (state = Math.imul(state, 48_271) >>> 0) % count;
  const more = [
    "(?<=a)b+?|(?<![ac])c",
    "(?:ab|a)(?:c|bcd)?",
    "(?!b)(?:[^a]|ab){2,}?(?=c)",
    "\\u{1F600}*?[^\\n]+",
    "x{0,20}",
  ];
  for (const source of [...WIDESPREAD, ...SLOW, ...more]) {
    const own = new RegExp(source, "gu");
    const [bounded, machine] = [boundedPattern(own), new PatternMachine(parseTree(source))];
    for (let round = 0; round < 60; round++) {
      const text = Array.from({ length: pick(12) }, () => PIECES[pick(PIECES.length)]).join("");
      const found = (pattern: RegExp) => Array.from(text.matchAll(pattern), (match) => [match.index, match[0]]);
      assert.deepEqual(found(bounded), found(own), `${source} in ${JSON.stringify(text)}`);
      assert.equal(text.replaceAll(bounded, "X"), text.replaceAll(own, "X"));
      if (!source.includes("(")) assert.deepEqual(text.split(bounded), text.split(own));
      for (const match of text.matchAll(own)) {
        assert.equal(machine.match(text, match.index), match.index + match[0].length, source);
      }
    }
  }
});

test("encode() takes no longer for a pattern that backtracks", async () => {
  const file = small().files.qwen2!;
  const split = (Regex: string) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
  const replace = (Regex: string) => ({ type: "Replace", pattern: { Regex }, content: "x" });
  for (const Regex of SLOW) {
    for (
      const changed of [{ pre_tokenizer: split(Regex) }, { normalizer: replace(Regex), pre_tokenizer: split("a") }]
    ) {
      const tokenizer = await fromFiles({ "tokenizer.json": { ...file, normalizer: null, ...changed } });
      const start = performance.now();
      tokenizer.encode("a".repeat(20_000) + "1".repeat(20_000) + " ".repeat(20_000));
      assert.ok(performance.now() - start < 10_000, `${Regex}: ${performance.now() - start} ms`);
    }
  }
});

test("loadTokenizer() refuses a pattern that cannot be bounded, by what it has", async () => {
  const file = small().files.qwen2!;
  for (
    const [Regex, has] of [["(a)\\1", "refers back"], ["(?<=a+)b", "looks behind"], ["(a?)*b", "may be empty"], [
      "a{1000000}",
      "4096",
    ]]
  ) {
    const preTokenizer = { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false };
    await assert.rejects(fromFiles({ "tokenizer.json": { ...file, pre_tokenizer: preTokenizer } }), (error: Error) => {
      return error.name === "FormatError" && error.message.includes(has!);
    });
  }
});
