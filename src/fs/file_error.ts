import { IntegrityError } from "../errors.ts";

const REASONS: ReadonlyMap<string, string> = new Map([
  ["EACCES", "permission denied"],
  ["EDQUOT", "the disk quota is used up"],
  ["EISDIR", "it is a folder"],
  ["ELOOP", "its links form a circle"],
  ["EMFILE", "too many files are open"],
  ["ENOENT", "no such file"],
  ["ENOSPC", "no space is left on the device"],
  ["ENOTDIR", "a part of its path is not a folder"],
  ["EPERM", "the operation is not permitted"],
  ["EROFS", "the file system is read-only"],
]);

/** The `code` that the operating system gave an error, such as `"ENOENT"`. */
export function systemCode(error: unknown): string | undefined {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" ? code : undefined;
}

/**
 * The typed form of an operating system's refusal: an `IntegrityError` with its `code` and the error as `cause`.
 * An error that is already one of ours, or no refusal of the system, comes back as it is.
 *
 * @param action What could not be done, as in `Cannot <action> "<path>"`.
 */
export function fileError(action: string, path: string, name: string, error: unknown): unknown {
  const code = systemCode(error);
  if (code === undefined || !/^E[A-Z0-9]+$/.test(code)) return error;
  const reason = REASONS.get(code) ?? `the system answered ${code}`;
  return new IntegrityError(`Cannot ${action} "${path}": ${reason}`, { code, file: name, cause: error });
}
