import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { DisposedError, IntegrityError } from "../src/errors.ts";
import { folder } from "../src/fs/mod.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

const KILLS = 24;
const LENGTH = 4 << 20;

/** Replaces "target" again and again, every version filled with one byte value; `bytes` is the hint given for it. */
function writer(path: string, bytes: number): string {
  return `
    const { folder } = await import(${JSON.stringify(new URL("../src/fs/mod.ts", import.meta.url).href)});
    const sink = folder(${JSON.stringify(path)});
    for (let version = 1;; version++) {
      const output = await sink.create("target", { bytes: ${bytes} });
      const bytes = new Uint8Array(${LENGTH / 4}).fill(version);
      for (let part = 0; part < 4; part++) await output.write(bytes);
      if (version === 1) process.stdout.write("writing");
      await output.commit();
    }`;
}

async function killWhileWriting(path: string, { bytes, delay }: { bytes: number; delay: number }): Promise<void> {
  const flags = "Deno" in globalThis ? ["eval"] : "Bun" in globalThis ? ["-e"] : ["--input-type=module", "-e"];
  const code = "import process from 'node:process';" + writer(path, bytes);
  const child = spawn(process.execPath, [...flags, code], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  await new Promise((resolve, reject) => {
    child.stdout.once("data", resolve);
    child.once("exit", () => reject(new Error("the writer ended by itself")));
  });
  await new Promise((resolve) => setTimeout(resolve, delay));
  child.kill("SIGKILL");
  await ended;
}

test("commit() never leaves a torn file under its name when the process is killed", { timeout: 30_000 }, async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "target"), new Uint8Array(LENGTH));
    const versions = new Set<number>();
    for (let kill = 0; kill < KILLS; kill++) {
      // Every other version from a thread.
      await killWhileWriting(path, { bytes: kill % 2 * 1e9, delay: (kill * 29) % 61 });
      const bytes = readFileSync(join(path, "target"));
      assert.equal(bytes.length, LENGTH);
      const version = bytes[0] ?? 0;
      assert.ok(bytes.equals(new Uint8Array(LENGTH).fill(version)), `torn by kill ${kill}`);
      versions.add(version);
    }
    assert.ok(versions.size > 1, "no version was ever committed");
    const left = readdirSync(path).filter((name) => name !== "target");
    for (const name of left) assert.match(name, /^target\.\d+\.[0-9a-f]{16}\.partial$/);
    assert.ok(left.length > 0, "no kill hit a write");
  });
});

test("create() sweeps its own leftovers after an hour, and nothing else", async () => {
  await inTemporaryFolder(async (path) => {
    const old = Date.now() / 1000 - 3700;
    const names = ["a.12.0123456789abcdef.partial", "b.12.0123456789abcdef.partial", "c.partial", "d.12.xyz.partial"];
    for (const name of names) writeFileSync(join(path, name), "");
    for (const name of names.slice(1)) utimesSync(join(path, name), old, old);
    const output = await folder(path).create("target");
    await output.abort();
    assert.deepEqual(readdirSync(path).sort(), ["a.12.0123456789abcdef.partial", "c.partial", "d.12.xyz.partial"]);
  });
});

test("create() makes the folder, and nothing has the final name before commit()", async () => {
  await inTemporaryFolder(async (path) => {
    const out = join(path, "deep", "out");
    const output = await folder(out).create("target");
    await output.write(new Uint8Array([1, 2]));
    await output.write(new Uint8Array(0));
    await output.write(new Uint8Array([3]).subarray(0, 1));
    assert.equal(readdirSync(out).includes("target"), false);
    await output.commit();
    assert.deepEqual(readdirSync(out), ["target"]);
    assert.deepEqual([...readFileSync(join(out, "target"))], [1, 2, 3]);
  });
});

test("abort() leaves the old file and no other, and may come twice or after commit()", async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "target"), "old");
    const output = await folder(path).create("target");
    await output.write(new Uint8Array(1000));
    await output.abort();
    await output.abort();
    assert.deepEqual(readdirSync(path), ["target"]);
    assert.equal(readFileSync(join(path, "target"), "utf8"), "old");
    await assert.rejects(output.write(new Uint8Array(1)), DisposedError);
    await assert.rejects(output.commit(), DisposedError);
    const second = await folder(path).create("target");
    await second.commit();
    await second.abort();
    assert.equal(readFileSync(join(path, "target"), "utf8"), "");
  });
});

test("two writers of one name do not mix: the last commit() wins whole", async () => {
  await inTemporaryFolder(async (path) => {
    const outputs = [await folder(path).create("target"), await folder(path).create("target")];
    for (const output of outputs) await output.write(new Uint8Array(10).fill(outputs.indexOf(output)));
    for (const output of outputs) await output.write(new Uint8Array(10).fill(outputs.indexOf(output)));
    for (const output of outputs) await output.commit();
    assert.deepEqual([...readFileSync(join(path, "target"))], new Array(20).fill(1));
    assert.deepEqual(readdirSync(path), ["target"]);
  });
});

test("a refusal of the system is typed, keeps its cause and removes the temporary file", async () => {
  await inTemporaryFolder(async (path) => {
    mkdirSync(join(path, "target", "full"), { recursive: true });
    const output = await folder(path).create("target");
    const error = await output.commit().catch((error: unknown) => error);
    assert.ok(error instanceof IntegrityError);
    assert.match(String(error.code), /^(EISDIR|ENOTEMPTY|EEXIST|EPERM)$/);
    assert.equal(error.file, "target");
    assert.ok(error.cause instanceof Error);
    assert.deepEqual(readdirSync(path), ["target"]);
    writeFileSync(join(path, "no-folder"), "");
    await assert.rejects(folder(join(path, "no-folder")).create("x"), { name: "IntegrityError", file: "x" });
  });
});

test("calls that are not awaited happen in their order, from the caller's thread and from one of their own", async () => {
  await inTemporaryFolder(async (path) => {
    for (const options of [{}, { bytes: 1e9 }]) {
      const output = await folder(path).create("target", options);
      const pieces = Array.from({ length: 40 }, (_, i) => new Uint8Array(1 + (i * 7919) % 300_000).fill(i));
      const calls = pieces.map((piece) => output.write(piece));
      const digest = output.sha256!();
      const committed = output.commit();
      await assert.rejects(output.write(pieces[0]!), DisposedError);
      await Promise.all([...calls, committed]);
      const want = Buffer.concat(pieces);
      assert.ok(readFileSync(join(path, "target")).equals(want));
      assert.equal(await digest, createHash("sha256").update(want).digest("hex"));
    }
  });
});

test("a new folder goes again with what was not finished in it, and stays with what was", async () => {
  await inTemporaryFolder(async (path) => {
    const place = () => folder(join(path, "new", "deep"));
    const [first, second] = [place(), place()];
    const files = await Promise.all([first.create("a"), first.create("b")]);
    await files[0]!.abort();
    assert.equal(readdirSync(join(path, "new", "deep")).length, 1);
    await files[1]!.abort();
    await files[1]!.abort();
    assert.deepEqual(readdirSync(path), []);

    const lock = await first.lock!("work");
    await (await first.create("a")).abort();
    await lock.release();
    await lock.release();
    assert.deepEqual(readdirSync(path), []);

    const [kept, left] = [await first.create("a"), await second.create("b")];
    await kept.commit();
    await left.abort();
    await (await first.create("c")).abort();
    assert.deepEqual(readdirSync(join(path, "new", "deep")), ["a"]);

    mkdirSync(join(path, "mine"));
    await (await folder(join(path, "mine")).create("a")).abort();
    await (await folder(join(path, "mine", "new")).create("a")).abort();
    assert.deepEqual(readdirSync(join(path, "mine")), []);
    const name = "n".repeat(250);
    await assert.rejects(folder(join(path, "other")).create(name), IntegrityError);
    await assert.rejects(folder(join(path, "other", "deep", `${name}${name}`)).create("a"), IntegrityError);
    assert.deepEqual(readdirSync(path).sort(), ["mine", "new"]);
  });
});

test("a place that takes no folder is refused at once", { timeout: 10_000 }, async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "file"), "");
    const taken = /: something else has its name or its folder's$/;
    const places: [string, RegExp][] = [[join(path, "file"), taken], [join(path, "file", "deep"), taken]];
    // Linux answers there as if the folder around it were missing.
    if (existsSync("/proc")) {
      places.push(["/proc", /the folder "\/proc": the system takes nothing there$/]);
      places.push(["/proc/none/deep", /the folder "\/proc\/none": the system takes nothing there$/]);
    }
    for (const [place, message] of places) {
      await assert.rejects(folder(place).create("a"), { message }, place);
      await assert.rejects(folder(place).lock!("work"), { message }, place);
    }
  });
});
