import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { createAdapter } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { folder } from "../src/fs/mod.ts";
import { FIXTURES, lora } from "./cli_support.ts";
import { assertClose, at } from "./merge_support.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

test("lora convert makes plain LoRA of an adapter of a changed base, by the base or by the initial adapter", async () => {
  await inTemporaryFolder(async (path) => {
    const base = join(FIXTURES, "base", "llama");
    const checkpoint = await openCheckpoint(folder(base));
    const { modules } = await loadAdapter(folder(join(FIXTURES, "llama-plain", "adapter")));
    const pissa = await createAdapter({
      modules: modules.values(),
      targetModules: ["q_proj", "v_proj"],
      r: 4,
      init: "pissa",
      weightOf: (name) => checkpoint.read(`${name}.weight`),
    });
    const adapter = join(path, "pissa");
    await saveAdapter(pissa, folder(adapter));
    const convert = (out: string, ...more: string[]) =>
      lora("convert", adapter, "--to", "peft", "--out", join(path, out), ...more);
    const [byBase, byInitial, bare, same] = await Promise.all([
      convert("base", "--plain", "--base", base),
      convert("initial", "--initial", adapter),
      convert("bare", "--plain"),
      convert("same"),
    ]);
    assert.deepEqual([byBase!.status, byInitial!.status, same!.status], [0, 0, 0], byBase!.stderr + byInitial!.stderr);
    assert.notEqual(bare!.status, 0);
    assert.match(bare!.stderr, /--base or --initial/);
    for (const out of ["base", "initial"]) {
      const { baseChange, config, modules } = await loadAdapter(folder(join(path, out)));
      assert.deepEqual([baseChange, config.init, config.r], [null, true, 8]);
      assert.deepEqual([...modules.values()].map(({ rank, scaling }) => [rank, scaling]), Array(4).fill([8, 2]));
    }
    assert.equal((await loadAdapter(folder(join(path, "same")))).baseChange, "pissa");
    assert.doesNotMatch(same!.stderr, /nothing of it was made plain/);
    const dora = join(FIXTURES, "llama-dora", "adapter");
    const kept = await lora("convert", dora, "--to", "peft", "--out", join(path, "dora"), "--plain");
    assert.equal(kept.status, 0, kept.stderr);
    assert.match(kept.stderr, /nothing of it was made plain/);
  });
});

test("lora merge takes the initial adapter of each adapter, as its conversion would be merged", async () => {
  await inTemporaryFolder(async (path) => {
    const base = join(FIXTURES, "base", "llama");
    const checkpoint = await openCheckpoint(folder(base));
    const { modules } = await loadAdapter(folder(join(FIXTURES, "llama-plain", "adapter")));
    const weightOf = (name: string) => checkpoint.read(`${name}.weight`);
    const sides = {
      modules: modules.values(),
      targetModules: ["q_proj"],
      r: 2,
      init: "pissa_niter_1",
      weightOf,
    } as const;
    const adapter = join(path, "pissa");
    await saveAdapter(await createAdapter(sides), folder(adapter));
    const merge = (...more: string[]) =>
      lora("merge", "--base", base, "--adapter", adapter, "--out", join(path, "out"), ...more);
    const [alone, twice, both] = await Promise.all([
      merge(),
      merge("--initial", adapter, "--initial", adapter),
      merge("--initial", adapter, "--residual-base"),
    ]);
    assert.equal(alone!.status, 1);
    assert.match(alone!.stderr, /init_lora_weights.*--initial INITIAL/);
    assert.deepEqual([twice!.status, both!.status], [2, 2], twice!.stderr + both!.stderr);
    const done = await merge("--initial", adapter, "--json");
    assert.equal(done.status, 0, done.stderr);
    // Before training an adapter takes what it gives: the merge is the base, to rounding.
    const merged = await openCheckpoint(folder(join(path, "out")));
    for (const name of modules.keys()) {
      const [got, want] = await Promise.all([merged, checkpoint].map((from) => from.read(`${name}.weight`)));
      assertClose(got, at(want!), name);
    }
  });
});
