/**
 * Locks on a folder that the death of their owner ends.
 *
 * A lock is an empty file `<name>.<machine>.<process>.<start>.<random>.lock`. Who wants one first makes a file and then
 * looks for others: of two at least one sees the other and takes its own back. No two locks ever have one name, so that
 * removing a dead process's file cannot remove a living one's, as it could where all share a name.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { open, readdir, readFile, readlink, unlink } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { IntegrityError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { FolderLock } from "../formats/source.ts";
import { fileError, systemCode } from "./file_error.ts";
import type { NewFolder } from "./new_folder.ts";

const LOCK = /^\.([0-9a-f]{12})\.(\d+)\.(\d+)\.[0-9a-f]{16}\.lock$/;
/** Two that saw each other both give way, and one of them comes back first. */
const TRIES = 3;
const MOST_WAIT_MS = 30;

/** A process, as the name of its lock tells it. */
interface Owner {
  /** The name of the lock's file. */
  readonly file: string;
  /** Of the machine, or of the container: where the number means this process. */
  readonly machine: string;
  readonly pid: number;
  /** Tells it from a later process of the same number; 0 where the system does not say. */
  readonly start: number;
}

/**
 * Locks a folder for this call alone: `name` says for what.
 *
 * @throws {IntegrityError} If a living process, or one of another machine, has the lock; `code` is "locked".
 */
export async function lockFolder(directory: string, name: string, folder: NewFolder): Promise<FolderLock> {
  const machine = await machineName();
  try {
    const path = await folder.enter(() => takeLock(directory, name, machine));
    let isHeld = true;
    return {
      release: async () => {
        if (!isHeld) return;
        isHeld = false;
        await unlink(path).catch(() => {});
        await folder.leave();
      },
    };
  } catch (error) {
    throw fileError("write to", directory, name, error);
  }
}

/** Makes the lock's file. */
async function takeLock(directory: string, name: string, machine: string): Promise<string> {
  for (let left = TRIES;; left--) {
    const random = createHash("sha256").update(crypto.randomUUID()).digest("hex").slice(0, 16);
    const own = `${name}.${machine}.${process.pid}.${await startOf(process.pid) ?? 0}.${random}.lock`;
    const path = join(directory, own);
    await open(path, "wx").then((handle) => handle.close());
    const other = await findLiving(directory, { name, own, machine }).catch(async (error) => {
      // It would lock out this process itself.
      await unlink(path).catch(() => {});
      throw error;
    });
    if (other === null) return path;
    await unlink(path);
    if (left === 1) throw refuseLocked(directory, name, other, machine);
    await new Promise((resolve) => setTimeout(resolve, MOST_WAIT_MS * Math.random()));
  }
}

/** Another's lock, if there is one; those of the dead are removed. */
async function findLiving(
  directory: string,
  { name, own, machine }: { readonly name: string; readonly own: string; readonly machine: string },
): Promise<Owner | null> {
  for (const file of await readdir(directory)) {
    const owner = file === own || !file.startsWith(name) ? null : parseOwner(file, name);
    if (owner === null) continue;
    if (owner.machine !== machine || await isAlive(owner)) return owner;
    await unlink(join(directory, file)).catch(() => {});
  }
  return null;
}

function parseOwner(file: string, name: string): Owner | null {
  const parts = LOCK.exec(file.slice(name.length));
  return parts && { file, machine: parts[1]!, pid: Number(parts[2]), start: Number(parts[3]) };
}

async function isAlive({ pid, start }: Owner): Promise<boolean> {
  if (process.platform === "linux") {
    const now = await startOf(pid);
    return now === undefined || (now !== null && (start === 0 || now === start));
  }
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) !== "ESRCH";
  }
}

/** When a process started, in ticks since the machine did; null if there is none, undefined if that cannot be told. */
async function startOf(pid: number): Promise<number | null | undefined> {
  try {
    // "pid (any name) state ppid …": the start is the 20th field from the state on
    const fields = (await readFile(`/proc/${pid}/stat`, "utf8")).replace(/^.*\) /s, "").split(" ");
    return /[ZXx]/.test(fields[0]!) ? null : Number(fields[19]);
  } catch (error) {
    const isGone = ["ENOENT", "ESRCH"].includes(systemCode(error) ?? "");
    return isGone && process.platform === "linux" ? null : undefined;
  }
}

/** What numbers of processes belong to: this start of this machine, or this container. */
async function machineName(): Promise<string> {
  const linux = [readFile("/proc/sys/kernel/random/boot_id", "utf8"), readlink("/proc/self/ns/pid")];
  const texts = await Promise.all(linux).catch(() => [hostname()]);
  return createHash("sha256").update(texts.join()).digest("hex").slice(0, 12);
}

function refuseLocked(directory: string, name: string, { file, machine, pid }: Owner, here: string): IntegrityError {
  const place = machine === here ? "" : " of another machine or container";
  const remedy = machine === here ? "" : `; if it is dead, remove ${quote(file)}`;
  const message = `Cannot write to ${quote(directory)}, which process ${pid}${place} has locked for its ${quote(name)}`;
  const details = { code: "locked", file, found: pid };
  return new IntegrityError(`${message}: expected it to end first, or another folder${remedy}`, details);
}
