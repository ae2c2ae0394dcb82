import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { folder } from "../src/fs/mod.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";

const lockOf = (path: string) => folder(path).lock!("work");

/** A process that runs code with `lock()`, and its first output. */
async function start(
  path: string,
  code: string,
): Promise<{ readonly child: ChildProcess; readonly ended: Promise<void> }> {
  const head = `
    import process from "node:process";
    import { appendFileSync } from "node:fs";
    const { folder } = await import(${JSON.stringify(new URL("../src/fs/mod.ts", import.meta.url).href)});
    const lock = () => folder(${JSON.stringify(path)}).lock("work");`;
  const flags = "Deno" in globalThis ? ["eval"] : "Bun" in globalThis ? ["-e"] : ["--input-type=module", "-e"];
  const child = spawn(process.execPath, [...flags, head + code], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  await new Promise((resolve) => child.stdout.once("data", resolve));
  return { child, ended };
}

test("a lock is one's own until it is released, and leaves nothing", async () => {
  await inTemporaryFolder(async (path) => {
    const out = join(path, "deep", "out");
    const lock = await lockOf(out);
    const refusal = { name: "IntegrityError", code: "locked", found: process.pid };
    await assert.rejects(lockOf(out), refusal);
    await assert.rejects(lockOf(out), (error: Error) => error.message.includes(`process ${process.pid} has locked`));
    const other = await folder(out).lock!("other");
    await other.release();
    await lock.release();
    await (await lockOf(out)).release();
    assert.deepEqual(readdirSync(path), []);
  });
});

test("a lock that another process has is refused with its number, and is free once that was killed", async () => {
  await inTemporaryFolder(async (path) => {
    const { child, ended } = await start(path, `await lock(); console.log("locked"); setTimeout(() => {}, 1e5);`);
    await assert.rejects(lockOf(path), { name: "IntegrityError", code: "locked", found: child.pid });
    assert.equal(readdirSync(path).length, 1);
    child.kill("SIGKILL");
    await ended;
    assert.equal(readdirSync(path).length, 1);
    const lock = await lockOf(path);
    assert.equal(readdirSync(path).length, 1);
    await lock.release();
    assert.deepEqual(readdirSync(path), []);
  });
});

test("a number that another process has got meanwhile keeps no lock, another machine's process does", async () => {
  await inTemporaryFolder(async (path) => {
    const lock = await lockOf(path);
    const [own] = readdirSync(path);
    await lock.release();
    const [name, machine, pid, started] = own!.split(".");
    const file = (...parts: unknown[]) => [name, ...parts, "0123456789abcdef", "lock"].join(".");
    const others = ["work.lock", "workshop.0.lock", file(machine, "x", started)];
    const stale = [file(machine, 2 ** 30, started)];
    if (process.platform === "linux") stale.push(file(machine, pid, Number(started) + 1));
    for (const one of [...others, ...stale]) writeFileSync(join(path, one), "");
    await (await lockOf(path)).release();
    assert.deepEqual(readdirSync(path).sort(), others.sort());
    const far = file("0".repeat(12), 2 ** 30, 1);
    writeFileSync(join(path, far), "");
    await assert.rejects(lockOf(path), (error: Error) => error.message.endsWith(`if it is dead, remove "${far}"`));
  });
});

test("of many processes that want a lock one has it at a time", { timeout: 30_000 }, async () => {
  await inTemporaryFolder(async (path) => {
    const log = join(path, "log");
    writeFileSync(log, "");
    const code = `
      const note = (what) => appendFileSync(${JSON.stringify(log)}, what + " " + process.pid + "\\n");
      console.log("started");
      for (let had = 0, end = Date.now() + 8000; had < 10 && Date.now() < end;) {
        const held = await lock().catch((error) => { if (error.code !== "locked") throw error; });
        if (!held) continue;
        note("enter");
        await new Promise((resolve) => setTimeout(resolve, had++ % 4));
        note("leave");
        await held.release();
      }`;
    const runs = await Promise.all(Array.from({ length: 4 }, () => start(path, code)));
    await Promise.all(runs.map(({ ended }) => ended));
    const lines = readFileSync(log, "utf8").trim().split("\n").map((line) => line.split(" "));
    assert.ok(new Set(lines.map(([, pid]) => pid)).size > 1, "only one process ever had it");
    for (let i = 0; i < lines.length; i += 2) {
      assert.deepEqual([lines[i]![0], lines[i + 1]![0], lines[i]![1]], ["enter", "leave", lines[i + 1]![1]]);
    }
    assert.deepEqual(readdirSync(path), ["log"]);
  });
});
