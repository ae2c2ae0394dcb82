import assert from "node:assert/strict";
import { test } from "node:test";
import { compilePatternKey, MAX_STEPS, Pattern } from "../src/adapter/pattern.ts";
import { compilePatternMap } from "../src/adapter/target_modules.ts";
import { FormatError, LimitError } from "../src/errors.ts";

const NAMES = [
  "q",
  "layers.0.q",
  "layers.10.self_attn.q_proj",
  "qq",
  "a-b",
  "x\n",
  "é٣",
  "",
  "aab",
  "model.layers.1.mlp.down_proj",
];

/** Pattern; indices of the names that Python's re.fullmatch takes; those that re.match("(.*\.)?(pattern)$") takes. */
const PYTHON: readonly (readonly [string, readonly number[], readonly number[]])[] = [
  [".*\\.(q|v)_proj", [2], [2]],
  ["q", [0], [0, 1]],
  ["(?:layers\\.)?\\d+\\.q", [1], [1]],
  ["layers\\.[0-9]\\.q", [1], [1]],
  ["[^.]+", [0, 3, 4, 5, 6, 8], [0, 1, 2, 3, 4, 5, 6, 8, 9]],
  ["[\\w.]*q", [0, 1, 3], [0, 1, 3]],
  ["a{2}b?", [8], [8]],
  ["a{,2}b", [8], [8]],
  ["x$", [], [5]],
  ["^q$|^qq$", [0, 3], [0, 3]],
  ["(a|b|-)+", [4, 8], [4, 8]],
  ["\\w\\d", [6], [6]],
  ["a{", [], []],
  ["", [7], [7]],
  [".*\\.(?:self_attn\\.q|mlp\\.down)_proj", [2, 9], [2, 9]],
  ["[]a-]+[^]]?", [4, 8], [4, 8]],
  [".*\\.layers\\.(0|1)\\..*", [9], [9]],
  ["(q??){1,3}", [0, 3, 7], [0, 1, 3, 7]],
];

test("fullMatch() takes the names that Python's re.fullmatch takes", () => {
  for (const [source, whole] of PYTHON) {
    const pattern = new Pattern(source);
    assert.deepEqual(NAMES.flatMap((name, i) => pattern.fullMatch(name) ? [i] : []), whole, source);
  }
});

test("match() takes a prefix, as Python's re.match does", () => {
  assert.ok(new Pattern("a+").match("aab"));
  assert.ok(new Pattern("a*$|b").match("b"));
  assert.ok(!new Pattern("b").match("ab"));
});

test("compilePatternKey() takes the names that PEFT's pattern lookup takes", () => {
  for (const [source, , tails] of PYTHON) {
    const key = compilePatternKey(source);
    assert.deepEqual(NAMES.flatMap((name, i) => key(name) ? [i] : []), tails, source);
  }
});

test("compilePatternKey() decides plain paths as the general matcher does", () => {
  const names = ["q_proj", "xq_proj", "a.q_proj", "layers.1.q", "layersX1.q", "a.layers.1.q", "layers.11.q"];
  for (const key of ["q_proj", "layers.1.q", "layers\\.1\\.q", "^layers.1.q", "roj", ".q"]) {
    const general = new Pattern(`(.*\\.)?(${key})$`);
    const plain = compilePatternKey(key);
    for (const name of names) assert.equal(plain(name), general.match(name), `${key} on ${name}`);
  }
});

test("a pattern that backtracks elsewhere for hours is decided in milliseconds", () => {
  for (const source of ["^(a+)+$", "(a|a)*b", "(a*)*(a*)*(a*)*c", "(.*)*x"]) {
    // The best of some tries: other processes share the machine.
    const times = Array.from({ length: 5 }, () => {
      const start = performance.now();
      assert.equal(new Pattern(source).fullMatch("a".repeat(511) + "!"), false);
      return performance.now() - start;
    });
    assert.ok(Math.min(...times) < 10, `${source} took ${times} ms`);
  }
});

test("Pattern refuses every construct outside the subset and names it", () => {
  const table: readonly (readonly [string, string])[] = [
    ["(?=a)", "(?="],
    ["(?!a)b", "(?!"],
    ["(?<=a)b", "(?<="],
    ["(?i)q", "(?i"],
    ["(?P<n>a)", "(?P<"],
    ["(a)\\1", "\\1"],
    ["\\bq", "\\b"],
    ["q\\Z", "\\Z"],
    ["a**", "*"],
    ["a*+", "+"],
    ["*a", "*"],
    ["^*", "quantifier after an anchor"],
    ["[ab", "["],
    ["(ab", "("],
    ["ab)", ")"],
    ["[z-a]", "-"],
    ["[a-\\d]", "-"],
    ["a{3,2}", "{3,2}"],
    ["a{1,256}", "{1,256}"],
    ["a\\", "\\"],
  ];
  for (const [source, construct] of table) {
    assert.throws(() => new Pattern(source, { file: "adapter_config.json", field: "target_modules" }), (error) => {
      assert.ok(error instanceof FormatError, source);
      assert.ok(String(error.found).includes(construct), `${source}: found ${error.found}`);
      assert.equal(error.field, "target_modules");
      return true;
    });
  }
});

test("Pattern refuses long patterns, long names and repeats that unfold without end", () => {
  assert.throws(() => new Pattern("a".repeat(1025)), LimitError);
  assert.throws(() => new Pattern("a*").fullMatch("a".repeat(513)), LimitError);
  assert.ok(new Pattern("a".repeat(1024)));
  assert.ok(new Pattern("a*").fullMatch("a".repeat(512)));
  for (const source of ["(((a{99}){99}){99}){99}", "(((){255}){255}){255}"]) {
    const start = performance.now();
    assert.throws(() => new Pattern(source), LimitError, source);
    assert.ok(performance.now() - start < 500, source);
  }
});

test("patterns that share their steps are refused together", () => {
  const work = { steps: 2000 };
  const patterns = [new Pattern("(a?b?)*x", { work }), new Pattern("(a?c?)*y", { work })];
  assert.throws(() => {
    for (let i = 0; i < 1000; i++) patterns[i % 2]!.fullMatch("a".repeat(100));
  }, LimitError);
});

test("patterns that unfold are refused together, before they take the memory of all", () => {
  const start = performance.now();
  const patterns = new Map(Array.from({ length: 4000 }, (_, i) => [`(x{0,200}){0,8}${i}`, 1]));
  assert.throws(() => compilePatternMap(patterns, 1, { field: "rank_pattern", work: { steps: MAX_STEPS } }), {
    name: "LimitError",
    field: "rank_pattern",
    limit: 781_250,
  });
  assert.ok(performance.now() - start < 3000);
});
