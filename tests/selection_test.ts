import assert from "node:assert/strict";
import { test } from "node:test";
import { MismatchError, NumericError, ShapeError } from "../src/errors.ts";
import { type AdapterSelection, resolveSelection, type RowMix } from "../src/lora/selection.ts";

const known = new Set(["emotion", "qa", "summary"]);

/** [what, selection, rows, rowsPer, wanted ranges as [start, end, ...mix]]. */
const CASES: readonly (readonly [
  string,
  AdapterSelection | undefined,
  number,
  number | undefined,
  readonly (readonly [number, number, RowMix["mix"]])[],
])[] = [
  ["nothing is the base", undefined, 3, undefined, [[0, 3, []]]],
  ["null is the base", null, 3, 4, [[0, 12, []]]],
  ["a name answers for all rows", "qa", 5, undefined, [[0, 5, [["qa", 1]]]]],
  ["a mix keeps its order and weights", { qa: 0.3, emotion: -2 }, 2, undefined, [
    [0, 2, [["qa", 0.3], ["emotion", -2]]],
  ]],
  ["a weight of 0 is left out", { qa: 0, emotion: 1 }, 1, undefined, [[0, 1, [["emotion", 1]]]]],
  ["an empty mix is the base", {}, 1, undefined, [[0, 1, []]]],
  ["an array names one per row", ["qa", null, "emotion"], 3, undefined, [
    [0, 1, [["qa", 1]]],
    [1, 2, []],
    [2, 3, [["emotion", 1]]],
  ]],
  ["neighbours of the same choice are one range", ["qa", "qa", null, null, "qa"], 5, undefined, [
    [0, 2, [["qa", 1]]],
    [2, 4, []],
    [4, 5, [["qa", 1]]],
  ]],
  ["mixes of other weights are other ranges", [{ qa: 1 }, { qa: 0.5 }, { qa: 0.5 }], 3, undefined, [
    [0, 1, [["qa", 1]]],
    [1, 3, [["qa", 0.5]]],
  ]],
  ["a row of a sequence is rowsPer rows", ["qa", null], 2, 7, [[0, 7, [["qa", 1]]], [7, 14, []]]],
];

/** The mix of every single row: how rows are grouped into ranges is the implementation's. */
function perRow(ranges: readonly RowMix[]): Map<number, RowMix["mix"]> {
  const rows = new Map<number, RowMix["mix"]>();
  for (const { start, end, mix } of ranges) {
    for (let row = start; row < end; row++) {
      assert.ok(!rows.has(row), `row ${row} is in two ranges`);
      rows.set(row, mix);
    }
  }
  return rows;
}

for (const [what, selection, rows, rowsPer, wanted] of CASES) {
  test(`resolveSelection(): ${what}`, () => {
    const got = resolveSelection(selection, { rows, ...(rowsPer && { rowsPer }), known });
    const want = wanted.map(([start, end, mix]) => ({ start, end, mix }));
    assert.deepEqual(perRow(got), perRow(want));
    assert.equal(got.length, want.length);
  });
}

test("resolveSelection() of no rows names none", () => {
  for (const selection of [[], null, "qa"] as const) {
    assert.equal(perRow(resolveSelection(selection, { rows: 0, known })).size, 0);
  }
});

test("resolveSelection() refuses an unknown name and lists the known ones", () => {
  for (const selection of ["sumary", ["qa", "sumary"], { qa: 1, sumary: 1 }, { sumary: 0 }, "__proto__", "toString"]) {
    assert.throws(() => resolveSelection(selection as AdapterSelection, { rows: 2, known }), (error: Error) => {
      assert.ok(error instanceof MismatchError);
      for (const name of known) assert.match(error.message, new RegExp(`"${name}"`));
      return true;
    });
  }
  const none = { rows: 1, known: new Set<string>() };
  assert.throws(() => resolveSelection("qa", none), /^MismatchError: Cannot apply adapter "qa": /);
});

test("resolveSelection() refuses an array that does not name one per row", () => {
  for (const selection of [[], ["qa"], ["qa", "qa", "qa"]]) {
    assert.throws(() => resolveSelection(selection, { rows: 2, known }), ShapeError);
  }
});

test("resolveSelection() refuses a weight that is not finite", () => {
  for (const weight of [NaN, Infinity, -Infinity]) {
    assert.throws(() => resolveSelection({ qa: weight }, { rows: 2, known }), NumericError);
  }
});

test("resolveSelection() never takes a choice of another type for the base", () => {
  for (const selection of [1, true, false, 0, [undefined], [["qa"]], [7], { qa: "1" }, { qa: undefined }]) {
    const resolve = () => resolveSelection(selection as unknown as AdapterSelection, { rows: 1, known });
    assert.throws(resolve, JSON.stringify(selection));
  }
});
