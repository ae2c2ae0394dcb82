/**
 * The output of a merge in a folder, from which a killed merge goes on: a finished file waits under a name of its own,
 * with its digest in a journal, until all are there.
 *
 * @module
 */

import type { ReportLine } from "../adapter/adapter.ts";
import { FormatError, IntegrityError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { sha256, toHex } from "../formats/sha256.ts";
import type { ReadOptions, Workspace } from "../formats/source.ts";
import { changesOf, JOURNAL, type Journal, type MergeIdentity, readJournal, writeJournal } from "./journal.ts";
import { type FileBody, fill, type MergeOutput, type NewFile, type OutputFile } from "./transaction.ts";

/** `<final name>.<identity>.merged`, and an unfinished write of it. */
const STAGED = /^(.+\.[0-9a-f]{16}\.merged)(?:\.\d+\.[0-9a-f]{16}\.partial)?$/;

/**
 * Opens the output folder: takes over what an earlier run of the same merge finished, clears what another one left.
 *
 * @param workspace The folder.
 * @param identity What the output depends on.
 * @param names The files that the merge will write; a journal's other names are not looked at.
 * @param options A signal.
 * @returns The output, and what was found.
 * @throws {IntegrityError} If a file's name is a folder's.
 */
export async function openStaging(
  workspace: Workspace,
  identity: MergeIdentity,
  names: ReadonlySet<string>,
  options: ReadOptions,
): Promise<{ readonly output: Staging; readonly report: readonly ReportLine[] }> {
  for (const name of [...names, JOURNAL]) await checkName(workspace, name, options);
  const found = await readJournal(workspace, options);
  const journal = found === "unreadable" ? null : found;
  const changes = journal ? changesOf(journal.identity, identity) : [];
  const suffix = `${await digestOf(identity)}.merged`;
  const candidates = changes.length === 0 ? journal?.finished ?? [] : [];
  const finished: OutputFile[] = [];
  for (const file of candidates.filter(({ name }) => names.has(name))) {
    if (await isWhole(workspace, file, suffix, options)) finished.push(file);
  }
  const kept = new Set(finished.map(({ name }) => `${name}.${suffix}`));
  for (const name of new Set(await stagedNames(workspace, options))) {
    if (!kept.has(name)) await workspace.remove(name);
  }
  if (found && finished.length === 0) await workspace.remove(JOURNAL);
  const output = new Staging(workspace, identity, suffix, finished);
  return { output, report: found ? [describe(found, changes, finished)] : [] };
}

/** A merge of what cannot be told shares its files' names with no other. */
async function digestOf(identity: MergeIdentity): Promise<string> {
  const entries = [...identity].map(([name, value]) => [name, value ?? crypto.randomUUID()]);
  return toHex(await sha256(new TextEncoder().encode(JSON.stringify(entries)))).slice(0, 16);
}

async function isWhole(workspace: Workspace, file: OutputFile, suffix: string, options: ReadOptions): Promise<boolean> {
  return await holds(workspace, `${file.name}.${suffix}`, file, options) ||
    await holds(workspace, file.name, file, options);
}

/** Whether a name's bytes are those of a finished file. */
async function holds(workspace: Workspace, name: string, file: OutputFile, options: ReadOptions): Promise<boolean> {
  try {
    if (!await workspace.has(name, options) || await workspace.open(name).size(options) !== file.bytes) return false;
    return await workspace.sha256(name, options) === file.sha256;
  } catch (error) {
    // A link that leads out of the folder.
    if (error instanceof FormatError) return false;
    throw error;
  }
}

/** Checks that a rename can give a file this name: a file, a link or nothing has it. */
async function checkName(workspace: Workspace, name: string, options: ReadOptions = {}): Promise<void> {
  try {
    if (!await workspace.has(name, options)) await workspace.open(name).size(options);
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof MismatchError || error instanceof FormatError) return;
    const message = `Cannot merge into ${quote(workspace.name)} with ${quote(name)} in it: expected a file or nothing`;
    throw new IntegrityError(message, { code: "not-a-file", file: name, cause: error });
  }
}

async function stagedNames(workspace: Workspace, options: ReadOptions): Promise<string[]> {
  const names = await workspace.list(options).catch((error) => {
    if (error instanceof MismatchError) return [];
    throw error;
  });
  return names.flatMap((name) => STAGED.exec(name)?.[1] ?? []);
}

function describe(
  journal: Journal | "unreadable",
  changes: readonly string[],
  finished: readonly OutputFile[],
): ReportLine {
  if (journal === "unreadable") {
    return { module: JOURNAL, what: "the merge starts anew", why: "the interrupted run's journal cannot be read" };
  }
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
  async write(file: NewFile, body: FileBody): Promise<void> {
    this.#finished.set(file.name, await this.#stage(file, body));
    // One after the other, and the last one notes all.
    this.#noting = this.#noting.then(() =>
      writeJournal(this.#workspace, { identity: this.#identity, finished: [...this.#finished.values()] })
    );
    await this.#noting;
  }

  /** See {@linkcode MergeOutput.writeCompanion}. */
  async writeCompanion(name: string, bytes: Uint8Array): Promise<void> {
    await this.#stage({ name, bytes: bytes.length }, (write) => write(bytes));
  }

  async #stage({ name, bytes }: NewFile, body: FileBody): Promise<OutputFile> {
    this.#files.set(name, null);
    const staged = await this.#workspace.create(`${name}.${this.#suffix}`, { bytes });
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
   *
   * @throws {IntegrityError} If a file is gone or its name a folder's; nothing is removed or renamed then.
   */
  async commit(): Promise<void> {
    const workspace = this.#workspace;
    const staged = await this.#staged();
    for (const name of staged.filter((name) => name.endsWith(".json")).reverse()) await workspace.remove(name);
    for (const name of staged) await workspace.rename(`${name}.${this.#suffix}`, name);
    await workspace.remove(JOURNAL);
  }

  /** The files that wait for their final names; an interrupted commit may have moved the others already. */
  async #staged(): Promise<string[]> {
    const waiting: string[] = [];
    for (const [name, file] of this.#files) {
      await checkName(this.#workspace, name);
      if (await this.#workspace.has(`${name}.${this.#suffix}`)) waiting.push(name);
      else if (file === null || !await holds(this.#workspace, name, file, {})) throw this.#refuseLost(name);
    }
    return waiting;
  }

  #refuseLost(name: string): IntegrityError {
    return new IntegrityError(
      `Cannot finish the merge into ${quote(this.#workspace.name)} without ${quote(name)} as it was written: ` +
        "expected no other merge or program to change the folder meanwhile",
      { code: "changed", file: name },
    );
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
