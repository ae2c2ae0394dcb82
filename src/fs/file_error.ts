import { IntegrityError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";

const REASONS: ReadonlyMap<string, string> = new Map([
  ["EACCES", "permission denied"],
  ["EDQUOT", "the disk quota is used up"],
  ["EEXIST", "something else has its name or its folder's"],
  ["EISDIR", "it is a folder"],
  ["ELOOP", "its links form a circle"],
  ["EMFILE", "too many files are open"],
  ["ENOENT", "there is no such file"],
  ["ENOSPC", "no space is left on the device"],
  ["ENOTDIR", "a part of its path is not a folder"],
  ["ENOTEMPTY", "there is a folder of that name"],
  ["EPERM", "the operation is not permitted"],
  ["EROFS", "the file system is read-only"],
]);

/** The system's codes, and those of Node's refusals of files; `ERR_INVALID_ARG_TYPE` and its like are mistakes in code. */
const CODE = /^(?:ERR_FS_|E(?!RR_))[A-Z0-9_]+$/;

/** The `code` that the operating system gave an error, such as `"ENOENT"`; Node's `"ERR_FS_EISDIR"` is `"EISDIR"`. */
export function systemCode(error: unknown): string | undefined {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" && CODE.test(code) ? code.replace(/^ERR_FS_(?=E[A-Z0-9]+$)/, "") : undefined;
}

/**
 * The typed form of the operating system's refusal, which stays its `cause`: a `MismatchError` for a file that is not
 * there, as every folder gives it, else an `IntegrityError` with the system's `code`. Other errors come back as they are.
 *
 * @param action What could not be done, as in `Cannot <action> "<path>"`.
 */
export function fileError(action: string, path: string, file: string, error: unknown): unknown {
  const code = systemCode(error);
  if (code === undefined) return error;
  const message = `Cannot ${action} ${quote(path)}: ${REASONS.get(code) ?? `the system answered ${code}`}`;
  if (code === "ENOENT" || code === "ENOTDIR") {
    return new MismatchError(message, { code: "missing-file", file, missing: [file], cause: error });
  }
  return new IntegrityError(message, { code, file, cause: error });
}
