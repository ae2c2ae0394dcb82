/** Copies a folder's files as fast as the disk allows: `merge_stress_copy.ts FROM TO`. What a merge is compared with. */
import { mkdirSync, readdirSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";

const PIECE = 1 << 22;
const FLUSH = 1 << 26;

const [from = "", to = ""] = process.argv.slice(2);
mkdirSync(to, { recursive: true });
for (const name of readdirSync(from)) await copyFile(join(from, name), join(to, name));

/** Reads, writes and flushes at the same time, as a merge does; nothing is left to be flushed. */
async function copyFile(source: string, target: string): Promise<void> {
  const [input, output] = [await open(source, "r"), await open(target, "w")];
  const buffers = [new Uint8Array(PIECE), new Uint8Array(PIECE)];
  let reading = input.read(buffers[0]!, 0, PIECE, 0);
  let [at, unflushed] = [0, 0];
  let flushing: Promise<void> | null = null;
  for (let turn = 0;; turn++) {
    const { bytesRead } = await reading;
    if (bytesRead === 0) break;
    reading = input.read(buffers[(turn + 1) % 2]!, 0, PIECE, at + bytesRead);
    await output.write(buffers[turn % 2]!, 0, bytesRead);
    at += bytesRead;
    unflushed += bytesRead;
    if (unflushed < FLUSH || flushing) continue;
    unflushed = 0;
    flushing = output.datasync().finally(() => flushing = null);
  }
  await flushing;
  await output.sync();
  await Promise.all([input.close(), output.close()]);
}
