import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { JsonNumber, type JsonValue, parseJson } from "../src/formats/json.ts";
import { readJson } from "../src/formats/json_file.ts";
import { compareCodePoints, stringifyJson } from "../src/formats/json_writer.ts";
import { memorySource } from "../src/formats/memory.ts";

function parse(text: string): JsonValue {
  return parseJson(text, { file: "config.json" });
}

/** The value as JSON.parse gives it. */
function plain(value: JsonValue): unknown {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
  return Array.isArray(value) ? value.map(plain) : value;
}

test("parseJson() agrees with JSON.parse on well-formed texts", () => {
  const texts = [
    "0",
    "-0",
    "-12.5e-3",
    "1E5",
    "123456789012345",
    "9007199254740991",
    "[0.1,1e-05,16.0,10,100,1234567890123456e3]",
    '"é\\u00e9\\ud83d\\ude00\\"\\\\\\/\\b\\f\\n\\r\\t😀"',
    '{"a":{"b":[{},[],{"c":null}]},"__proto__":[true,false]}',
    ' \t\r\n{ "a" : [ 1 , 2 ] , "b" : "" } ',
  ];
  for (const text of texts) assert.deepEqual(plain(parse(text)), JSON.parse(text), text);
});

test("parseJson() keeps keys in file order, integer-like ones too", () => {
  const value = parse('{"b":1,"10":2,"2":3,"":4,"__proto__":5}');
  assert.ok(value instanceof Map);
  assert.deepEqual([...value.keys()], ["b", "10", "2", "", "__proto__"]);
});

const REFUSED: readonly (readonly [text: string, message: RegExp])[] = [
  ["", /the end of the text at line 1, column 1: expected a value/],
  ["{", /expected a key/],
  ["[1", /expected "," or "\]"/],
  ["[1,]", /expected a value/],
  ['{"a":1,}', /expected a key/],
  ['{"a" 1}', /expected ":"/],
  ["{a:1}", /expected a key in double quotes/],
  ["[1]]", /expected the end/],
  ["01", /expected the end/],
  ["+1", /expected a value/],
  ["1.", /expected the end/],
  [".5", /expected a value/],
  ["-", /expected a number/],
  ["1e", /expected the end/],
  ["0x10", /expected the end/],
  ["tru", /expected a value/],
  ["nullx", /expected the end/],
  ['{"r": 8,\n "x": NaN}', /"NaN" at line 2, column 7/],
  ["[-Infinity]", /-/],
  ["Infinity", /"Infinity" at line 1/],
  ["1e400", /1\.8e308/],
  ["9007199254740992", /2\^53 - 1/],
  ["-9007199254740993", /2\^53 - 1/],
  ['"a', /ended by a double quote/],
  ['"a\nb"', /control characters/],
  ['"\\n\u0001"', /control characters/],
  ['"\\x41"', /escape/],
  ['"\\u12G4"', /four hexadecimal digits/],
  ['"\\u12', /four hexadecimal digits/],
  ['"\\ud800"', /lone surrogate/],
  ['"\\udc00\\ud800"', /lone surrogate/],
  ['"\ud800"', /lone surrogate/],
  ["\ufeff{}", /line 1, column 1/],
  ["{}\0", /expected the end/],
  ["{} {}", /expected the end/],
  ["// x\n{}", /expected a value/],
  ["'a'", /expected a value/],
  ['{"a":1,"\\u0061":2}', /key "a" a second time/],
];

for (const [text, message] of REFUSED) {
  test(`parseJson() refuses ${JSON.stringify(text)}`, () => {
    assert.throws(() => parse(text), { name: "FormatError", file: "config.json", message });
  });
}

test("parseJson() names the repeated key", () => {
  assert.throws(() => parse('{"x":{"r":1,"s":2,"r":3}}'), { field: "r", message: /line 1, column 19/ });
});

test("parseJson() caps the depth and needs no stack for it", () => {
  const deep = (levels: number) => "[".repeat(levels) + "]".repeat(levels);
  parseJson(deep(16), { file: "a", maxDepth: 16 });
  assert.throws(() => parseJson(deep(17), { file: "a", maxDepth: 16 }), { name: "LimitError", limit: 16, value: 17 });
  assert.throws(() => parse("[".repeat(1_000_000)), { name: "LimitError" });
  parseJson(deep(1_000_000), { file: "a", maxDepth: Infinity });
});

test("parseJson() keeps the text of numbers where asked to", () => {
  const value = parseJson("[0.0, 1e-05, 16.0, -0, 8, 0.5, 12345678901234567890]", { file: "a", keepNumberText: true });
  assert.ok(Array.isArray(value));
  assert.deepEqual(
    value.map((item) => item instanceof JsonNumber ? [item.text, item.value] : item),
    [["0.0", 0], ["1e-05", 1e-5], ["16.0", 16], ["-0", -0], 8, 0.5, ["12345678901234567890", 12345678901234567890]],
  );
});

test("parseJson() and stringifyJson() give back the bytes of every PEFT config", () => {
  const fixtures = new URL("./fixtures/", import.meta.url);
  const names = readdirSync(fixtures).filter((name) => name.startsWith("llama-") || name.startsWith("bert-"));
  assert.ok(names.length > 10);
  for (const name of names) {
    const text = readFileSync(new URL(`${name}/adapter/adapter_config.json`, fixtures), "utf8");
    const value = parseJson(text, { file: name, keepNumberText: true });
    assert.equal(stringifyJson(value, { indent: 2, sortKeys: true }), text.trimEnd(), name);
  }
});

test("stringifyJson() writes what Python writes", () => {
  const numbers: [number, string][] = [
    [0, "0"],
    [-0, "-0.0"],
    [-7, "-7"],
    [0.1, "0.1"],
    [0.0001, "0.0001"],
    [0.00001, "1e-05"],
    [1.5e-7, "1.5e-07"],
    [1e16, "1e+16"],
    [1.25e22, "1.25e+22"],
    [1e-300, "1e-300"],
    [123456.789, "123456.789"],
  ];
  for (const [value, text] of numbers) assert.equal(stringifyJson(value), text);
  assert.equal(stringifyJson('é😀"\n\u007f\u2028'), '"\\u00e9\\ud83d\\ude00\\"\\n\u007f\\u2028"');
  const value = new Map<string, JsonValue>([["b", []], ["a", new Map([["c", [1, [true, null]]]])], ["A", new Map()]]);
  assert.equal(stringifyJson(value), '{"b": [], "a": {"c": [1, [true, null]]}, "A": {}}');
  const lines = [
    "{",
    ' "A": {},',
    ' "a": {',
    '  "c": [',
    "   1,",
    "   [",
    "    true,",
    "    null",
    "   ]",
    "  ]",
    " },",
  ];
  assert.equal(stringifyJson(value, { indent: 1, sortKeys: true }), [...lines, ' "b": []', "}"].join("\n"));
});

test("stringifyJson() refuses NaN and infinity", () => {
  assert.throws(() => stringifyJson([NaN]), { name: "NumericError", message: /NaN/ });
  assert.throws(() => stringifyJson(new Map([["a", -Infinity]])), { name: "NumericError" });
});

test("compareCodePoints() sorts as UTF-8 bytes do", () => {
  const texts = ["", "a", "ab", "b", "é", "\ud7ff", "\ue000", "\uffff", "\u{10000}", "\u{10ffff}"];
  const shuffled = [...texts].reverse();
  assert.deepEqual(shuffled.sort(compareCodePoints), texts);
});

test("readJson() refuses a file above its cap without reading it", async () => {
  const source = {
    name: "big.json",
    size: () => Promise.resolve(1_000_001),
    read: () => Promise.reject(new Error("read")),
  };
  await assert.rejects(readJson(source, { maxBytes: 1_000_000 }), { name: "LimitError", limit: 1e6, value: 1_000_001 });
});

test("readJson() refuses bytes that are not UTF-8", async () => {
  const source = memorySource("a.json", new Uint8Array([0x22, 0xff, 0x22]));
  await assert.rejects(readJson(source, { maxBytes: 10 }), { name: "FormatError", file: "a.json", expected: "UTF-8" });
  const mark = memorySource("a.json", new Uint8Array([0xef, 0xbb, 0xbf, 0x7b, 0x7d]));
  await assert.rejects(readJson(mark, { maxBytes: 10 }), { name: "FormatError" });
});
