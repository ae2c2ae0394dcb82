import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { ThreadedWriter } from "../src/fs/threaded_writer.ts";
import { folder } from "../src/fs/mod.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

/** A hint that asks for a thread, whatever comes then. */
const LARGE = { bytes: 1e9 };
const SLOT = 1 << 22;

function bytesOf(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => i * 31 + (i >> 8) * 7 + (i >> 16));
}

const digestOf = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

test("a thread writes the bytes that it is given, whatever their number, and knows their digest", async () => {
  await inTemporaryFolder(async (path) => {
    const bytes = bytesOf(3 * SLOT + 5000);
    for (const length of [0, 1, 4095, 4096, 4097, SLOT - 1, SLOT, SLOT + 1, 3 * SLOT, 3 * SLOT + 5000]) {
      const want = bytes.subarray(0, length);
      const output = await folder(path).create("target", LARGE);
      for (let at = 0; at < length;) {
        const piece = want.slice(at, at + 1_000_003);
        await output.write(piece);
        piece.fill(0); // its memory is the caller's again
        at += piece.length;
        if (at === 1_000_003) assert.equal(await output.sha256?.(), digestOf(want.subarray(0, at)));
      }
      assert.equal(await output.sha256?.(), digestOf(want), `${length}`);
      assert.equal(existsSync(join(path, "target")), false);
      await output.commit();
      assert.ok(readFileSync(join(path, "target")).equals(want), `${length}`);
      await folder(path).remove("target");
    }
  });
});

test("the digest of a file that was aborted or committed is refused as every use of it is", async () => {
  await inTemporaryFolder(async (path) => {
    for (const options of [{}, LARGE]) {
      const [aborted, committed] = [await folder(path).create("a", options), await folder(path).create("b", options)];
      await aborted.abort();
      await committed.commit();
      for (const output of [aborted, committed]) await assert.rejects(output.sha256!(), { name: "DisposedError" });
    }
    assert.deepEqual(readdirSync(path), ["b"]);
  });
});

test("what a thread was writing is gone after abort(), and the old file is there", async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "target"), "old");
    const output = await folder(path).create("target", LARGE);
    await output.write(new Uint8Array(SLOT + 3));
    assert.equal(readdirSync(path).length, 2);
    await output.abort();
    await output.abort();
    assert.deepEqual(readdirSync(path), ["target"]);
    assert.equal(readFileSync(join(path, "target"), "utf8"), "old");
    await assert.rejects(output.write(new Uint8Array(1)), { name: "DisposedError" });
  });
});

test("a refusal that the system gives the thread reaches the caller with its code", async (context) => {
  await assert.rejects(ThreadedWriter.open("/no/such/folder/file"), { code: "ENOENT" });
  if (!existsSync("/dev/full")) return context.skip?.("there is no disk that is always full");
  for (const length of [10, 5 * SLOT]) {
    const writer = await ThreadedWriter.open("/dev/full");
    assert.ok(writer);
    const writing = (async () => {
      for (let at = 0; at < length; at += SLOT) await writer.write(new Uint8Array(Math.min(length, SLOT)));
      await writer.finish();
    })();
    await assert.rejects(writing, { code: "ENOSPC" });
    await assert.rejects(writer.finish(), { code: "ENOSPC" });
    await writer.close();
    await writer.close();
    await assert.rejects(writer.sha256(), { name: "IntegrityError", code: "thread" });
  }
});

test("a file that is taken away meanwhile is no file that was written", async () => {
  await inTemporaryFolder(async (path) => {
    const output = await folder(path).create("target", LARGE);
    await output.write(new Uint8Array(10));
    await folder(path).remove("target");
    await assert.rejects(output.commit(), { name: "MismatchError", code: "missing-file" });
    assert.deepEqual(readdirSync(path), []);
  });
});

test("where no thread can be had the file is written all the same", async () => {
  await inTemporaryFolder(async (path) => {
    // only Node can forbid threads and not files
    if ("Deno" in globalThis || "Bun" in globalThis) {
      writeFileSync(join(path, "target"), "");
      const writer = await ThreadedWriter.open(join(path, "target"));
      assert.ok(writer instanceof ThreadedWriter);
      return await writer.close();
    }
    const code = `
      const { folder } = await import(${JSON.stringify(new URL("../src/fs/mod.ts", import.meta.url).href)});
      const { ThreadedWriter } = await import(${
      JSON.stringify(new URL("../src/fs/threaded_writer.ts", import.meta.url).href)
    });
      const output = await folder(${JSON.stringify(path)}).create("target", { bytes: 1e9 });
      await output.write(new Uint8Array(5e6).fill(7));
      console.log(await ThreadedWriter.open(${JSON.stringify(join(path, "none"))}), await output.sha256());
      await output.commit();`;
    const flags = ["--permission", "--allow-fs-read=*", "--allow-fs-write=*", "--input-type=module", "-e", code];
    const { stdout } = spawnSync(process.execPath, flags, { encoding: "utf8" });
    const want = new Uint8Array(5e6).fill(7);
    assert.equal(stdout.trim(), `null ${digestOf(want)}`);
    assert.ok(readFileSync(join(path, "target")).equals(want));
  });
});
