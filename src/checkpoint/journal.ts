import { IntegrityError } from "../errors.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { type JsonValue, parseJson } from "../formats/json.ts";
import { readText } from "../formats/json_file.ts";
import type { ReadOptions, Workspace } from "../formats/source.ts";
import { writeFiles } from "../formats/write_files.ts";
import type { OutputFile } from "./transaction.ts";

/** What the bytes of a merge's output depend on, by name; null for what cannot be told, which is never the same. */
export type MergeIdentity = ReadonlyMap<string, string | null>;

/** What a run of a merge noted down. */
export interface Journal {
  /** What its output depends on. */
  readonly identity: MergeIdentity;
  /** The large files that are whole and durable, under their final names or staged. */
  readonly finished: readonly OutputFile[];
}

/** File in the output folder while a merge is under way. */
export const JOURNAL = "merge.state.json";
const VERSION = 1;
const MAX_BYTES = 16_000_000;
const SHA256 = /^[0-9a-f]{64}$/;

/**
 * Reads the journal of an earlier run.
 *
 * @param workspace The output folder.
 * @param options A signal.
 * @returns The journal; null if there is none, `"unreadable"` if it is torn, or a link that leads out of the folder.
 */
export async function readJournal(
  workspace: Workspace,
  options: ReadOptions,
): Promise<Journal | "unreadable" | null> {
  try {
    if (!await workspace.has(JOURNAL, options)) return null;
    const text = await readText(workspace.open(JOURNAL), { ...options, maxBytes: MAX_BYTES });
    return parseJournal(parseJson(text, { file: JOURNAL })) ?? "unreadable";
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof SyntaxError || error instanceof RangeError || error instanceof IntegrityError) {
      return "unreadable";
    }
    throw error;
  }
}

/** Writes the journal: the earlier one or this one is there, whatever happens. */
export async function writeJournal(workspace: Workspace, { identity, finished }: Journal): Promise<void> {
  const entries = finished.map(({ name, bytes, sha256 }) =>
    [name, new Map<string, JsonValue>([["bytes", bytes], ["sha256", sha256]])] as const
  );
  const root = new Map<string, JsonValue>([
    ["version", VERSION],
    ["identity", new Map(identity)],
    ["finished", new Map(entries)],
  ]);
  const bytes = new TextEncoder().encode(stringifyJson(root, { indent: 2 }) + "\n");
  await writeFiles(workspace, new Map([[JOURNAL, bytes]]));
}

/** Names what differs between two identities. */
export function changesOf(before: MergeIdentity, now: MergeIdentity): string[] {
  const names = new Set([...before.keys(), ...now.keys()]);
  return [...names].filter((name) => now.get(name) == null || before.get(name) !== now.get(name));
}

function parseJournal(root: JsonValue): Journal | null {
  if (!(root instanceof Map) || root.get("version") !== VERSION) return null;
  const [identity, finished] = [root.get("identity"), root.get("finished")];
  if (!(identity instanceof Map) || !(finished instanceof Map)) return null;
  const files: OutputFile[] = [];
  for (const [name, entry] of finished) {
    const [bytes, sha256] = entry instanceof Map ? [entry.get("bytes"), entry.get("sha256")] : [];
    if (typeof bytes !== "number" || typeof sha256 !== "string" || !SHA256.test(sha256)) return null;
    files.push({ name, bytes, sha256 });
  }
  const texts = new Map<string, string | null>();
  for (const [name, value] of identity) texts.set(name, typeof value === "string" ? value : null);
  return { identity: texts, finished: files };
}
