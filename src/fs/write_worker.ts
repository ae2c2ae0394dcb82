/**
 * What the thread behind a {@linkcode ThreadedWriter} runs, as text: one data URL works in every runtime and through
 * every bundler, where the path of a file would not.
 *
 * It opens the file whose path it is given and answers with the memory that both threads share; then it answers every
 * message in order: `write` hashes and writes `length` bytes of a slot, `digest` and `finish` take them for the last,
 * `close` ends the thread.
 *
 * Where the system can, the bytes go around the page cache: a file larger than memory would only push all else out of
 * it, and a virtual machine pays for every page that it has not touched before (6 GB, Node 24: 2 s instead of 9 s of
 * system time). That wants addresses, places and lengths in whole blocks, so the last one is cut afterwards.
 *
 * @module
 */

import { FLUSH_BYTES } from "./file_writer.ts";

/** Bytes that are written at a time: at 1 MiB direct writes have half the rate, above 4 MiB no more (measured). */
export const SLOT_BYTES: number = 1 << 22;
/** One is written, one waits, one is being filled. */
export const SLOTS = 3;
/** A multiple of every disk's block. */
const BLOCK = 4096;

const CODE = `
import { createHash } from "node:crypto";
import { close, constants, fdatasync, fsync, ftruncate, open, write } from "node:fs";
import process from "node:process";
import { parentPort, workerData } from "node:worker_threads";

const pages = SLOTS * SLOT_BYTES / 65_536;
// starts at a page, as a write around the page cache wants it
const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
const bytes = new Uint8Array(buffer);
const hash = createHash("sha256");
let direct = constants.O_DIRECT ?? 0;
let [file, at, unflushed, flushing, failure] = [-1, 0, 0, null, null];

const call = (run, ...values) =>
  new Promise((resolve, reject) => run(...values, (error, value) => error ? reject(error) : resolve(value)));

async function openFile() {
  try {
    file = await call(open, workerData, constants.O_WRONLY | direct);
  } catch (error) {
    if (direct === 0) throw error;
    await openPlain();
  }
}

async function openPlain() {
  direct = 0;
  await closeFile();
  await openFile();
}

async function closeFile() {
  await flushing;
  const open = file;
  file = -1;
  if (open >= 0) await call(close, open);
}

async function put(from, length) {
  for (let done = 0; done < length;) {
    try {
      done += await call(write, file, bytes, from + done, length - done, at + done);
    } catch (error) {
      if (direct === 0 || error.code !== "EINVAL") throw error;
      await openPlain();
    }
  }
  at += length;
  unflushed += length;
  if (direct !== 0 || unflushed < FLUSH_BYTES || flushing !== null) return;
  unflushed = 0;
  flushing = call(fdatasync, file).catch((error) => failure = error).finally(() => flushing = null);
}

async function append(from, length) {
  const writing = put(from, length);
  hash.update(bytes.subarray(from, from + length));
  await writing;
}

async function finish(from, length) {
  const size = at + length;
  await put(from, direct === 0 ? length : Math.ceil(length / BLOCK) * BLOCK);
  await flushing;
  if (failure !== null) throw failure;
  if (at !== size) await call(ftruncate, file, size);
  await call(fsync, file);
  await closeFile();
}

async function answer({ slot, length, wants }) {
  const from = slot * SLOT_BYTES;
  if (wants === "close") await closeFile().catch(() => {});
  else if (failure !== null) throw failure;
  else if (wants === "digest") return hash.copy().update(bytes.subarray(from, from + length)).digest("hex");
  else if (wants === "finish") await finish(from, length);
  else await append(from, length);
}

function fail(error) {
  failure = error;
  return { error: { message: error.message, code: error.code } };
}

let last = openFile().then(() => ({ buffer }), fail).then((reply) => parentPort.postMessage(reply));
parentPort.on("message", (message) => {
  last = last.then(() => answer(message)).then((digest) => ({ digest }), fail).then((reply) => {
    parentPort.postMessage(reply);
    if (message.wants === "close") process.exit();
  });
});
`;

/** The URL of the code. */
export function writeWorkerUrl(): URL {
  const constants = { SLOT_BYTES, SLOTS, BLOCK, FLUSH_BYTES };
  const head = Object.entries(constants).map(([name, value]) => `const ${name} = ${value};`);
  return new URL(`data:text/javascript,${encodeURIComponent(head.join("\n") + CODE)}`);
}
