/**
 * The output of a merge in a folder, from which a killed merge goes on: a finished file waits under a name of its own,
 * with its digest in a journal, until all are there.
 *
 * @module
 */

import type { ReportLine } from "../adapter/adapter.ts";
import { MismatchError } from "../errors.ts";
import { sha256, toHex } from "../formats/sha256.ts";
import type { ReadOptions, Workspace } from "../formats/source.ts";
import { changesOf, JOURNAL, type Journal, type MergeIdentity, readJournal, writeJournal } from "./journal.ts";
import { type FileBody, fill, type MergeOutput, type OutputFile } from "./transaction.ts";

/** `<final name>.<identity>.merged`, and an unfinished write of it. */
const STAGED = /^(.+\.[0-9a-f]{16}\.merged)(?:\.\d+\.[0-9a-f]{16}\.partial)?$/;

/** Opens the output folder: takes over what an earlier run of the same merge finished, clears what another one left. */
export async function openStaging(
  workspace: Workspace,
  identity: MergeIdentity,
  options: ReadOptions,
): Promise<{ readonly output: Staging; readonly report: readonly ReportLine[] }> {
  const journal = await readJournal(workspace, options);
  const changes = journal ? changesOf(journal.identity, identity) : [];
  const suffix = `${toHex(await sha256(new TextEncoder().encode(JSON.stringify([...identity])))).slice(0, 16)}.merged`;
  const candidates = changes.length === 0 ? journal?.finished ?? [] : [];
  const finished: OutputFile[] = [];
  for (const file of candidates) {
    if (await isWhole(workspace, file, suffix, options)) finished.push(file);
  }
  const kept = new Set(finished.map(({ name }) => `${name}.${suffix}`));
  for (const name of new Set(await stagedNames(workspace, options))) {
    if (!kept.has(name)) await workspace.remove(name);
  }
  if (journal && finished.length === 0) await workspace.remove(JOURNAL);
  const output = new Staging(workspace, identity, suffix, finished);
  return { output, report: journal ? [describe(journal, changes, finished)] : [] };
}

async function isWhole(workspace: Workspace, file: OutputFile, suffix: string, options: ReadOptions): Promise<boolean> {
  for (const name of [`${file.name}.${suffix}`, file.name]) {
    if (!await workspace.has(name, options) || await workspace.open(name).size(options) !== file.bytes) continue;
    if (await workspace.sha256(name, options) === file.sha256) return true;
  }
  return false;
}

async function stagedNames(workspace: Workspace, options: ReadOptions): Promise<string[]> {
  const names = await workspace.list(options).catch((error) => {
    if (error instanceof MismatchError) return [];
    throw error;
  });
  return names.flatMap((name) => STAGED.exec(name)?.[1] ?? []);
}

function describe(journal: Journal, changes: readonly string[], finished: readonly OutputFile[]): ReportLine {
  if (changes.length > 0) {
    const which = changes.length > 1 ? `${changes[0]} and ${changes.length - 1} more` : changes[0];
    return { module: JOURNAL, what: "the merge starts anew", why: `changed since the interrupted run: ${which}` };
  }
  const what = `${finished.length} of ${journal.finished.length} finished files of the interrupted run are kept`;
  return { module: JOURNAL, what, why: "same base, adapters and options; their digests were compared" };
}

/** See {@linkcode openStaging}. */
export class Staging implements MergeOutput {
  readonly #workspace: Workspace;
  readonly #identity: MergeIdentity;
  readonly #suffix: string;
  readonly #finished: Map<string, OutputFile>;
  readonly #files: Map<string, OutputFile | null> = new Map();
  #noting: Promise<void> = Promise.resolve();

  /** Takes a folder in which nothing else of a merge lies. */
  constructor(workspace: Workspace, identity: MergeIdentity, suffix: string, finished: readonly OutputFile[]) {
    this.#workspace = workspace;
    this.#identity = identity;
    this.#suffix = suffix;
    this.#finished = new Map(finished.map((file) => [file.name, file]));
  }

  /** See {@linkcode MergeOutput.files}. */
  get files(): readonly OutputFile[] {
    return [...this.#files.values()].filter((file) => file !== null);
  }

  /** See {@linkcode MergeOutput.finished}. */
  finished(name: string): OutputFile | undefined {
    const file = this.#finished.get(name);
    if (file) this.#files.set(name, file);
    return file;
  }

  /** See {@linkcode MergeOutput.write}. */
  async write(name: string, body: FileBody): Promise<void> {
    this.#finished.set(name, await this.#stage(name, body));
    // One after the other, and the last one notes all.
    this.#noting = this.#noting.then(() =>
      writeJournal(this.#workspace, { identity: this.#identity, finished: [...this.#finished.values()] })
    );
    await this.#noting;
  }

  /** See {@linkcode MergeOutput.writeCompanion}. */
  async writeCompanion(name: string, bytes: Uint8Array): Promise<void> {
    await this.#stage(name, (write) => write(bytes));
  }

  async #stage(name: string, body: FileBody): Promise<OutputFile> {
    this.#files.set(name, null);
    const staged = await this.#workspace.create(`${name}.${this.#suffix}`);
    try {
      const file = await fill(staged, name, body);
      await staged.commit();
      this.#files.set(name, file);
      return file;
    } catch (error) {
      await staged.abort();
      throw error;
    }
  }

  /**
   * The last file of an earlier model goes first: between two renames the folder holds no model rather than a mixed one.
   */
  async commit(): Promise<void> {
    const workspace = this.#workspace;
    for (const name of [...this.#files.keys()].reverse().filter((name) => name.endsWith(".json"))) {
      await workspace.remove(name);
    }
    for (const name of this.#files.keys()) {
      const staged = `${name}.${this.#suffix}`;
      // An interrupted commit may have moved it already.
      if (await workspace.has(staged) || !await workspace.has(name)) await workspace.rename(staged, name);
    }
    await workspace.remove(JOURNAL);
  }

  /** See {@linkcode MergeOutput.abort}. */
  async abort(resumable: boolean): Promise<void> {
    await this.#noting.catch(() => {});
    const kept = resumable ? this.#finished : new Map<string, OutputFile>();
    const names = [...this.#files.keys(), ...this.#finished.keys()].filter((name) => !kept.has(name));
    await Promise.allSettled(names.map((name) => this.#workspace.remove(`${name}.${this.#suffix}`)));
    if (kept.size === 0) await this.#workspace.remove(JOURNAL).catch(() => {});
  }
}
