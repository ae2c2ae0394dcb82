import assert from "node:assert/strict";
import process from "node:process";
import { test } from "node:test";
import fc from "fast-check";
import { FormatError } from "../src/errors.ts";
import { adapterTargets } from "./fuzz_adapters.ts";
import { FORMATS } from "./fuzz_formats.ts";
import { emptyTally, runTarget, type Target } from "./fuzz_run.ts";

const CASES = 20_000;
const SEED = 6;

test("20,000 mutated files of every kind give a value or a typed error, in time and within memory", async () => {
  const targets = [...FORMATS, ...await adapterTargets()];
  for (const target of targets) {
    const tally = emptyTally();
    const cases = Math.ceil(CASES / targets.length);
    const failure = await runTarget(target, { cases, seed: SEED }, tally);
    assert.equal(failure, null, failure?.report);
    // A fuzzer that finds one answer only is none; a pickle that runs code has one.
    const share = tally.accepted / cases;
    const [least, most] = target.name === "pickle that runs code" ? [0, 0] : [0.1, 0.7];
    assert.ok(share >= least && share <= most, `${target.name}: ${tally.accepted} of ${cases} accepted`);
  }
});

/** A target of one number, which breaks from 100 on. */
function broken(read: () => void): Target<number> {
  return {
    name: "broken",
    edits: fc.nat(0xffff),
    build: () => new Map(),
    read(_, edit) {
      if (edit >= 100) read();
      return Promise.resolve();
    },
  };
}

async function findSmallest(read: () => void): Promise<string> {
  const failure = await runTarget(broken(read), { cases: 100, seed: SEED, maxMs: 20 }, emptyTally());
  return failure?.report ?? "";
}

test("the fuzzer finds untyped errors, unreadable messages, large buffers and slow cases, and the smallest of each", async () => {
  const find = {
    "untyped error": () => {
      throw new TypeError("x is undefined");
    },
    "another form": () => {
      throw new FormatError("bad file", {});
    },
    "allocated": () => new Float64Array(2 ** 23 + 1),
    "took": () => {
      const start = process.cpuUsage();
      while (process.cpuUsage(start).user < 25_000);
    },
  };
  for (const [what, read] of Object.entries(find)) {
    const report = await findSmallest(read);
    assert.match(report, /^broken: 100\n/, report);
    assert.ok(report.includes(what), report);
  }
});
