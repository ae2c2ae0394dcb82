import { realpath, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { quote } from "../formats/quote.ts";
import { UsageError } from "./command.ts";

/** What a command writes. */
export interface WrittenPlace {
  /** The folder, or the file. */
  readonly path: string;
  /** Which files of the folder it claims; null where the path is the file. */
  readonly writes: ((name: string) => boolean) | null;
  /** Option that names the path; "out" if absent. */
  readonly option?: string;
}

/**
 * A folder that is claimed whole: a merged model has files of the base's names, and an adapter beside a model would make
 * transformers take that folder for the adapter. Only a GGUF file is no part of any such folder.
 */
export function claimedFolder(path: string): WrittenPlace {
  return { path, writes: (name) => !name.endsWith(".gguf") };
}

/**
 * Refuses to write where something is read: over it, as a file of a folder that is read, or into a folder that is claimed
 * from a file that is read, or into a file in place of a folder, or the other way round.
 *
 * @param place What is written.
 * @param paths The files and folders that are read.
 * @throws {UsageError} If it is such a place.
 */
export async function refuseOverwrite(place: WrittenPlace, paths: readonly string[]): Promise<void> {
  const { path, writes, option = "out" } = place;
  const to = await realPlace(path);
  const isThere = await stat(path).catch(() => undefined);
  if (isThere && isThere.isDirectory() !== (writes !== null)) {
    const [found, wanted] = writes === null ? ["folder", "file"] : ["file", "folder"];
    throw new UsageError(
      `Cannot write to ${quote(path)}, which is a ${found}: another --${option}, a ${wanted}, is wanted`,
    );
  }
  for (const from of await Promise.all(paths.map(realPlace))) {
    const isPart = writes === null && dirname(to) === from && await isFolder(from);
    const isWritten = writes !== null && dirname(from) === to && !(await isFolder(from)) && writes(basename(from));
    if (to !== from && !isPart && !isWritten) continue;
    throw new UsageError(`Cannot write to ${quote(path)}, which is read too: another --${option} is wanted`);
  }
}

async function isFolder(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false;
}

/** Where a path leads, though its last part may not be there yet. */
async function realPlace(path: string): Promise<string> {
  const folder = await realpath(dirname(resolve(path))).catch(() => dirname(resolve(path)));
  return await realpath(path).catch(() => join(folder, basename(resolve(path))));
}
