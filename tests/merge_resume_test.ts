import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { mergeCheckpoint, type MergeOptions, type MergeReport } from "../src/checkpoint/merge.ts";
import { IntegrityError, MismatchError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import type { Folder, Workspace } from "../src/formats/source.ts";
import { folder } from "../src/fs/mod.ts";
import { MODEL, sharded, smallAdapter, smallBase } from "./adapter_fixtures.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

const JOURNAL = "merge.state.json";
const [FIRST, SECOND] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] as const;

interface Place {
  readonly base: Folder;
  readonly out: Workspace;
  readonly path: string;
}

async function inPlace(body: (place: Place) => Promise<void>): Promise<void> {
  await inTemporaryFolder(async (path) => {
    const base = folder(join(path, "base"));
    for (const [name, bytes] of sharded()) await writeWhole(base, name, bytes);
    await body({ base, out: folder(join(path, "out")), path: join(path, "out") });
  });
}

async function writeWhole(sink: Workspace, name: string, bytes: Uint8Array): Promise<void> {
  const file = await sink.create(name);
  await file.write(bytes);
  await file.commit();
}

async function run({ base, out }: Place, options: MergeOptions & { readonly weight?: number } = {}) {
  const adapter = await loadAdapter(smallAdapter());
  return await mergeCheckpoint(base, [{ adapter, weight: options.weight ?? 1 }], out, options);
}

/** Stops the merge in the first shard, of one piece, which is finished then. */
async function interrupt(place: Place, weight = 1): Promise<void> {
  const controller = new AbortController();
  const reason = new Error("stopped");
  const onProgress = () => controller.abort(reason);
  await assert.rejects(run(place, { signal: controller.signal, onProgress, weight }), reason);
}

/** The same folder, with calls of one's own. */
function withOwn(out: Workspace, own: Partial<Workspace>): Workspace {
  const copy: Record<string, unknown> = { name: out.name };
  for (const name of ["create", "remove", "rename", "has", "open", "list", "sha256", "location", "lock"] as const) {
    copy[name] = (out[name] as (...parameters: never[]) => unknown).bind(out);
  }
  return Object.assign(copy, own) as unknown as Workspace;
}

const lines = ({ report }: MergeReport) => report.map(({ what, why }) => `${what}; ${why}`).join("\n");

/** The files of a folder, without the folders in it. */
function contents(path: string): Map<string, Uint8Array> {
  const files = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(files.map(({ name }) => [name, readFileSync(join(path, name))] as const).sort());
}

test("an interrupted merge goes on at the next shard, and gives the same files", async () => {
  await inPlace(async (place) => {
    const whole = await run({ ...place, out: folder(join(place.path, "whole")) });
    const want = contents(join(place.path, "whole"));
    await interrupt(place);
    const left = readdirSync(place.path).filter((name) => name !== "whole");
    assert.deepEqual(left.map((name) => name.replace(/[0-9a-f]{16}/, "ID")).sort(), [JOURNAL, `${FIRST}.ID.merged`]);
    const done: string[] = [];
    const report = await run(place, { onProgress: ({ name }) => done.push(name) });
    assert.match(lines(report), /^1 of 1 finished files of the interrupted run are kept/);
    assert.deepEqual(done, [FIRST, "layers.0.q_proj.weight"]);
    assert.deepEqual([report.digests, report.bytes], [whole.digests, whole.bytes]);
    assert.deepEqual(contents(place.path), want);
    assert.equal(lines(await run(place)), "");
  });
});

test("a merge of other inputs starts anew and says which one changed", async () => {
  const changes: readonly (readonly [RegExp, (place: Place) => Promise<MergeReport>])[] = [
    [/adapter 1$/, (place) => run(place, { weight: 0.5 })],
    [/dtype$/, (place) => run(place, { dtype: "bf16" })],
    [/base model-00002-of-00002\.safetensors$/, async (place) => {
      const bytes = sharded().get(SECOND)!;
      await writeWhole(place.base as Workspace, SECOND, bytes);
      return await run(place);
    }],
    [/and \d more$/, async (place) => {
      // The place cannot tell whether these bytes are the same.
      return await run({ ...place, base: memoryFolder(sharded()) });
    }],
  ];
  for (const [which, change] of changes) {
    await inPlace(async (place) => {
      await interrupt(place);
      const report = await change(place);
      assert.match(lines(report), /^the merge starts anew; changed since the interrupted run: /);
      assert.match(lines(report), which);
      assert.deepEqual(readdirSync(place.path).sort(), [...report.files].sort());
    });
  }
});

test("a finished shard whose bytes are not those of the journal is written again; so is all under a torn journal", async () => {
  await inPlace(async (place) => {
    const whole = await run(place);
    for (const name of readdirSync(place.path)) await place.out.remove(name);
    const damage: readonly ((staged: string) => void)[] = [
      (staged) => writeFileSync(staged, readFileSync(staged).fill(1, 100, 101)),
      (staged) => writeFileSync(staged, ""),
      () => writeFileSync(join(place.path, JOURNAL), readFileSync(join(place.path, JOURNAL)).subarray(0, 99)),
      () => writeFileSync(join(place.path, JOURNAL), '{"version":1,"identity":{},"finished":{"../x":{"bytes":1}}}'),
    ];
    for (const spoil of damage) {
      await interrupt(place);
      const staged = readdirSync(place.path).find((name) => name.endsWith(".merged"))!;
      spoil(join(place.path, staged));
      const report = await run(place);
      assert.deepEqual(report.digests, whole.digests);
      assert.deepEqual(readdirSync(place.path).sort(), [...report.files].sort());
    }
  });
});

test("a merge interrupted between two final names goes on there; meanwhile the folder holds no model", async () => {
  await inPlace(async (place) => {
    await writeWhole(place.out, "config.json", new TextEncoder().encode("{}"));
    const whole = await run({ ...place, out: folder(join(place.path, "whole")) });
    for (let last = 1; last <= 6; last++) {
      let renames = 0;
      const out = withOwn(place.out, {
        rename: (from, to) => {
          if (++renames === last) throw new IntegrityError("the disk is gone");
          return place.out.rename(from, to);
        },
      });
      await assert.rejects(run({ ...place, out }), IntegrityError);
      assert.equal(await place.out.has("config.json"), false);
      const done: string[] = [];
      const report = await run(place, { onProgress: ({ name }) => done.push(name) });
      assert.deepEqual([done, report.digests], [[FIRST, SECOND], whole.digests]);
      assert.deepEqual([...contents(place.path).keys()].sort(), [...report.files].sort());
    }
  });
});

test("a merge whose finished file another program took away says so, and leaves the earlier output", async () => {
  await inPlace(async (place) => {
    await run(place, { weight: 3 });
    const before = contents(place.path);
    const create = async (name: string) => {
      const staged = readdirSync(place.path).find((one) => one.startsWith(SECOND) && one.endsWith(".merged"));
      if (name.startsWith("config.json") && staged) await place.out.remove(staged);
      return await place.out.create(name);
    };
    await assert.rejects(run({ ...place, out: withOwn(place.out, { create }) }, { weight: 0.5 }), {
      name: "IntegrityError",
      code: "changed",
      file: SECOND,
    });
    const now = contents(place.path);
    for (const [name, bytes] of before) assert.deepEqual(now.get(name), bytes, name);
    await run(place, { weight: 3 });
    assert.deepEqual(contents(place.path), before);
  });
});

test("a merge into a folder into which another one is merging is refused, and disturbs nothing", async () => {
  await inPlace(async (place) => {
    const whole = await run({ ...place, out: folder(join(place.path, "whole")) });
    const errors: unknown[] = [];
    const create = async (name: string) => {
      errors.push(await run(place, { weight: 0.5 }).catch((error: unknown) => error));
      return await place.out.create(name);
    };
    const report = await run({ ...place, out: withOwn(place.out, { create }) });
    for (const error of errors) {
      assert.ok(error instanceof IntegrityError && error.code === "locked" && error.found === process.pid, `${error}`);
    }
    assert.deepEqual(report.digests, whole.digests);
    assert.deepEqual(contents(place.path), contents(join(place.path, "whole")));
    await run(place, { weight: 0.5 });
  });
});

test("a merge refuses a folder with a file's name and keeps all: before it begins, and before it removes anything", async () => {
  await inPlace(async (place) => {
    const whole = await run({ ...place, out: folder(join(place.path, "whole")) });
    await run(place, { weight: 0.5 });
    await place.out.remove("config.json");
    const before = contents(place.path);
    const config = join(place.path, "config.json");
    mkdirSync(config);
    const refusal = { name: "IntegrityError", code: "not-a-file", file: "config.json" };
    await assert.rejects(run(place, { onProgress: () => assert.fail("it began") }), refusal);
    assert.deepEqual(contents(place.path), before);
    rmdirSync(config);
    let made = 0;
    await assert.rejects(run(place, { onProgress: () => void (made++ === 0 && mkdirSync(config)) }), refusal);
    const now = contents(place.path);
    for (const [name, bytes] of before) assert.deepEqual(now.get(name), bytes, name);
    rmdirSync(config);
    const done: string[] = [];
    const report = await run(place, { onProgress: ({ name }) => done.push(name) });
    assert.match(lines(report), /^2 of 2 finished files/);
    assert.deepEqual([done, report.digests], [[FIRST, SECOND], whole.digests]);
  });
});

test("a journal from elsewhere hinders no merge: foreign names, no JSON, a link that leads out", async () => {
  await inPlace(async (place) => {
    const whole = await run({ ...place, out: folder(join(place.path, "whole")) });
    const journal = join(place.path, JOURNAL);
    for (const name of ["../../../etc/passwd", "nul", "base.txt"]) {
      await interrupt(place);
      const state = JSON.parse(readFileSync(journal, "utf8"));
      writeFileSync(journal, JSON.stringify({ ...state, finished: { [name]: { bytes: 1, sha256: "0".repeat(64) } } }));
      const report = await run(place);
      assert.deepEqual([lines(report).slice(0, 6), report.digests], ["0 of 1", whole.digests], name);
    }
    const spoil = [
      () => writeFileSync(journal, "{"),
      () => symlinkSync(join(place.path, "..", "base", FIRST), journal),
    ];
    for (const put of spoil) {
      put();
      const report = await run(place);
      assert.match(lines(report), /^the merge starts anew; the interrupted run's journal cannot be read/);
      assert.deepEqual(report.digests, whole.digests);
      assert.deepEqual([...contents(place.path).keys()].sort(), [...report.files].sort());
    }
  });
});

test("what fails again is not kept", async () => {
  await inPlace(async (place) => {
    await assert.rejects(run(place, { dtype: "f16", weight: 1e6 }), { name: "NumericError" });
    assert.equal(existsSync(place.path), false);
  });
});

test("shards are not written beside a model.safetensors that loaders would take for them", async () => {
  await inPlace(async (place) => {
    await writeWhole(place.out, MODEL, smallBase().get(MODEL)!);
    await assert.rejects(run(place), (error: unknown) => error instanceof MismatchError && error.code === "shadowed");
    assert.deepEqual(readdirSync(place.path), [MODEL]);
  });
});

test("jobs write shards side by side with the same bytes; a dry run writes nothing", async () => {
  await inPlace(async (place) => {
    const dry = await run(place, { dryRun: true });
    assert.deepEqual([await place.out.has(FIRST), dry.merged, dry.digests], [false, ["layers.0.q_proj.weight"], {}]);
    const one = await run(place);
    const two = await run({ ...place, out: folder(join(place.path, "two")) }, { jobs: 2 });
    assert.deepEqual(two, one);
    const sizes = Object.fromEntries(Object.entries(one.sizes).filter(([name]) => name !== "SHA256SUMS"));
    assert.deepEqual(dry.sizes, sizes);
    for (const jobs of [0, 1.5, "2"]) await assert.rejects(run(place, { jobs: jobs as never }), TypeError);
  });
});
