/**
 * Folders and files on disk, for every reader and writer of `@lowrank/lora`, in Deno, Node and Bun.
 *
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { folder } from "@lowrank/lora/fs";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/emotion"));
 * ```
 *
 * @module
 */

export { file } from "./file.ts";
export { folder, type FolderOptions } from "./folder.ts";
export type {
  Folder,
  FolderLock,
  HeldSource,
  NewFileOptions,
  ReadOptions,
  Sink,
  SinkFile,
  Source,
  Workspace,
} from "../formats/source.ts";
