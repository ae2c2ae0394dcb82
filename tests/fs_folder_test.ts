import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { FormatError, IntegrityError, MismatchError } from "../src/errors.ts";
import { file, folder } from "../src/fs/mod.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

const HOSTILE = [
  "",
  ".",
  "..",
  "../secret",
  "a/b",
  "a\\b",
  "/etc/passwd",
  "C:x",
  "\\\\host\\x",
  "a\0b",
  "%2e%2e",
  "%2e%2e%2fsecret",
  "nul",
  "COM1.safetensors",
  "a\n",
  "x.",
  "x".repeat(256),
];

test("file() reads ranges and tells size and name", async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "a file.gguf"), "0123456789");
    for (const source of [file(join(path, "a file.gguf")), file(pathToFileURL(join(path, "a file.gguf")))]) {
      assert.equal(source.name, "a file.gguf");
      assert.equal(await source.size(), 10);
      assert.equal(text(await source.read(3, 4)), "3456");
      assert.equal(text(await source.read(10, 0)), "");
    }
  });
});

test("file() refuses to read beyond the end before it allocates", async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "short"), "0123");
    const source = file(join(path, "short"));
    await assert.rejects(source.read(2, 3), { name: "IntegrityError", file: "short" });
    await assert.rejects(source.read(0, 2 ** 52), IntegrityError);
    await assert.rejects(source.read(-1, 1), RangeError);
    await assert.rejects(source.read(0, 0.5), RangeError);
  });
});

test("file() refuses a file that changed or was replaced since it was first read", async () => {
  const changes: ((path: string) => void)[] = [
    (path) => writeFileSync(path, "other length"),
    (path) => utimesSync(path, 1, 1),
    (path) => {
      writeFileSync(`${path}.new`, "0123");
      utimesSync(`${path}.new`, 5, 5);
      renameSync(`${path}.new`, path);
    },
  ];
  await inTemporaryFolder(async (directory) => {
    for (const [index, change] of changes.entries()) {
      const path = join(directory, `file${index}`);
      writeFileSync(path, "0123");
      utimesSync(path, 5, 5);
      const source = file(path);
      assert.equal(await source.size(), 4);
      change(path);
      await assert.rejects(source.read(0, 1), { name: "IntegrityError", file: `file${index}` });
    }
  });
});

test("file() names a missing file and keeps the system's error as cause", async () => {
  await inTemporaryFolder(async (path) => {
    const error = await file(join(path, "absent.gguf")).size().catch((error: unknown) => error);
    assert.ok(error instanceof MismatchError);
    assert.equal(error.code, "missing-file");
    assert.equal(error.file, "absent.gguf");
    assert.match(error.message, /^Cannot read ".*absent\.gguf": there is no such file$/);
    assert.ok(error.cause instanceof Error);
    await assert.rejects(file(path).read(0, 0), IntegrityError);
  });
});

test("file() rejects with the signal's reason", async () => {
  await inTemporaryFolder(async (path) => {
    writeFileSync(join(path, "a"), "0123");
    const reason = new Error("enough");
    const signal = AbortSignal.abort(reason);
    await assert.rejects(file(join(path, "a")).read(0, 1, { signal }), (error) => error === reason);
    await assert.rejects(folder(path).has("a", { signal }), (error) => error === reason);
    const later = new AbortController();
    const reading = file(join(path, "a")).read(0, 1, { signal: later.signal });
    later.abort(reason);
    await assert.rejects(reading, (error) => error === reason);
  });
});

test("folder() lists plain names sorted, knows what it has, and reads it", async () => {
  await inTemporaryFolder(async (path) => {
    for (const name of ["b.json", "a.safetensors", "a:b", "nul.json"]) writeFileSync(join(path, name), name);
    mkdirSync(join(path, "nested"));
    const place = folder(path);
    assert.deepEqual(await place.list?.(), ["a.safetensors", "b.json"]);
    assert.equal(await place.has("b.json"), true);
    assert.equal(await place.has("c.json"), false);
    assert.equal(await place.has("nested"), false);
    assert.equal(text(await place.open("b.json").read(0, 6)), "b.json");
    assert.equal(await folder(join(path, "absent")).has("b.json"), false);
    await assert.rejects(folder(join(path, "absent")).list?.() ?? Promise.resolve(), { code: "missing-file" });
  });
});

test("folder() refuses names that are not plain", async () => {
  await inTemporaryFolder(async (path) => {
    const place = folder(path);
    for (const name of HOSTILE) {
      assert.throws(() => place.open(name), FormatError, name);
      await assert.rejects(place.has(name), FormatError, name);
      await assert.rejects(place.create(name), FormatError, name);
    }
    assert.deepEqual(readdirSync(path), []);
  });
});

test("folder() follows links inside it and refuses links that lead out", async () => {
  await inTemporaryFolder(async (path) => {
    mkdirSync(join(path, "inside"));
    mkdirSync(join(path, "inside-out"));
    writeFileSync(join(path, "inside-out", "secret"), "secret");
    writeFileSync(join(path, "inside", "real"), "real");
    symlinkSync("real", join(path, "inside", "alias"));
    symlinkSync("../inside-out/secret", join(path, "inside", "out"));
    symlinkSync(join(path, "inside"), join(path, "entrance"));
    const place = folder(join(path, "entrance"));
    assert.equal(text(await place.open("alias").read(0, 4)), "real");
    await assert.rejects(place.open("out").read(0, 1), { name: "FormatError", file: "out" });
    await assert.rejects(place.has("out"), FormatError);
  });
});

test("folder() lets links lead as far as linksWithin", async () => {
  await inTemporaryFolder(async (path) => {
    mkdirSync(join(path, "snapshots", "1"), { recursive: true });
    mkdirSync(join(path, "blobs"));
    writeFileSync(join(path, "blobs", "b"), "blob");
    symlinkSync("../../blobs/b", join(path, "snapshots", "1", "config.json"));
    symlinkSync("/etc/passwd", join(path, "snapshots", "1", "out"));
    const place = folder(join(path, "snapshots", "1"), { linksWithin: path });
    assert.equal(text(await place.open("config.json").read(0, 4)), "blob");
    await assert.rejects(place.has("out"), FormatError);
    await assert.rejects(folder(join(path, "snapshots", "1")).has("config.json"), FormatError);
  });
});

test("folder() replaces a link by the new file and leaves what it pointed to", async () => {
  await inTemporaryFolder(async (path) => {
    mkdirSync(join(path, "inside"));
    writeFileSync(join(path, "outside"), "outside");
    symlinkSync("../outside", join(path, "inside", "a"));
    const output = await folder(join(path, "inside")).create("a");
    await output.write(new TextEncoder().encode("new"));
    await output.commit();
    assert.equal(readFileSync(join(path, "outside"), "utf8"), "outside");
    assert.equal(readFileSync(join(path, "inside", "a"), "utf8"), "new");
  });
});

test("folder() refuses to remove or replace a folder, with the system's error as cause", async () => {
  await inTemporaryFolder(async (path) => {
    mkdirSync(join(path, "inner"));
    writeFileSync(join(path, "a.txt"), "a");
    const place = folder(path);
    await assert.rejects(place.remove("inner"), (error: unknown) => {
      assert.ok(error instanceof IntegrityError && error.cause instanceof Error);
      return /^E[A-Z]+$/.test(error.code) && error.file === "inner";
    });
    await assert.rejects(place.rename("a.txt", "inner"), { name: "IntegrityError", file: "a.txt" });
    assert.deepEqual(await place.list(), ["a.txt"]);
  });
});

test("folder() and file() refuse what is no path", () => {
  assert.throws(() => folder(7 as unknown as string), TypeError);
  assert.throws(() => file(new URL("https://example.com/x")), TypeError);
});
