import { checkWritable } from "./check_place.ts";
import type { ReadOptions, Sink, SinkFile } from "./source.ts";

/**
 * Writes files of which none appears before all are written.
 *
 * @param sink Where they go.
 * @param contents The files by name.
 * @param options A signal.
 * @throws {TypeError} If `sink` takes no files.
 */
export async function writeFiles(
  sink: Sink,
  contents: ReadonlyMap<string, Uint8Array>,
  options: ReadOptions = {},
): Promise<void> {
  checkWritable("write", sink);
  options.signal?.throwIfAborted();
  const files: SinkFile[] = [];
  try {
    for (const [name, bytes] of contents) {
      const file = await sink.create(name);
      files.push(file);
      await file.write(bytes);
      options.signal?.throwIfAborted();
    }
    for (const file of files) await file.commit();
  } catch (error) {
    await Promise.allSettled(files.map((file) => file.abort()));
    throw error;
  }
}
