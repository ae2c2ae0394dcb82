import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { checkAgainst, nearestName } from "../src/adapter/match.ts";
import { MismatchError } from "../src/errors.ts";
import { fixtureFolder, smallAdapter } from "./adapter_fixtures.ts";

const small = () => loadAdapter(smallAdapter());
type Entry = readonly [string, readonly [number, number]];
const FITS: Entry = ["layers.0.q_proj", [6, 4]];
const baseOf = (...modules: readonly Entry[]) => new Map(modules);

test("checkAgainst() gives the modules that have their place", async () => {
  const base = baseOf(FITS, ["layers.0.v_proj", [1, 1]]);
  assert.deepEqual(checkAgainst(await small(), base), { applied: [FITS[0]], missing: [], unexpected: [] });
});

test("checkAgainst() refuses modules that the base lacks, naming the nearest one", async () => {
  const adapter = await small();
  const base = baseOf(["model.layers.0.q_proj", [6, 4]], ["model.layers.0.v_proj", [6, 4]]);
  assert.throws(() => checkAgainst(adapter, base), (error) => {
    assert.ok(error instanceof MismatchError);
    assert.deepEqual([error.applied, error.unexpected], [[], [FITS[0]]]);
    return error.message.includes('nearest is "model.layers.0.q_proj"');
  });
});

test("checkAgainst() refuses a module of another shape, naming both shapes", async () => {
  for (const shape of [[4, 6], [6, 5], [7, 4]] as const) {
    const wanted = { unexpected: [FITS[0]], message: new RegExp(`\\[6, 4\\], the base has \\[${shape.join(", ")}\\]`) };
    const adapter = await small();
    assert.throws(() => checkAgainst(adapter, baseOf([FITS[0], shape])), wanted);
  }
});

test("checkAgainst() refuses an adapter without tensors for a module that its config targets", async () => {
  const adapter = await small();
  const base = baseOf(FITS, ["layers.1.q_proj", [6, 4]]);
  assert.throws(() => checkAgainst(adapter, base), { name: "MismatchError", missing: ["layers.1.q_proj"] });
});

test("checkAgainst() returns the three lists as data where strict is false", async () => {
  const adapter = await loadAdapter(fixtureFolder("multi/emotion"));
  const names = [...adapter.modules].map(([name, { outFeatures, inFeatures }]) =>
    [name, [outFeatures, inFeatures]] as const
  );
  const base = baseOf(...names.slice(1), ["model.layers.7.self_attn.q_proj", [48, 48]]);
  const { applied, missing, unexpected } = checkAgainst(adapter, base, { strict: false });
  assert.deepEqual(applied, names.slice(1).map(([name]) => name));
  assert.deepEqual([missing, unexpected], [["model.layers.7.self_attn.q_proj"], [names[0]![0]]]);
});

test("a config whose pattern is not supported is matched by its tensors alone", async () => {
  const adapter = await loadAdapter(smallAdapter({ config: { target_modules: "(?!x).*" } }));
  const base = baseOf(FITS, ["other", [1, 1]]);
  assert.deepEqual(checkAgainst(adapter, base).missing, []);
});

test("nearestName() takes the fewest edits, the first among equals", () => {
  assert.equal(nearestName("abc", ["xbz", "abd", "abe"]), "abd");
  assert.equal(nearestName("h.0.attn", ["model.h.0.attn", "model.h.1.attn"]), "model.h.0.attn");
  assert.equal(nearestName("a", []), undefined);
});
