/** The part of `node:assert/strict` that the operations' tests use, for a page. */

type Expected =
  | RegExp
  | Readonly<Record<string, unknown>>
  | (new (...args: never[]) => Error)
  | ((e: Error) => unknown);

function fail(message: unknown, otherwise: string): never {
  throw new Error(
    message === undefined ? otherwise : `${message} (${otherwise})`,
  );
}

function isSame(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) return false;
  const [first, second] = [Object.entries(a), Object.entries(b)];
  return a.constructor === b.constructor && first.length === second.length &&
    first.every(([key, value]) => key in b && isSame(value, (b as Record<string, unknown>)[key]));
}

function isConstructor(
  expected: Expected,
): expected is new (...args: never[]) => Error {
  return typeof expected === "function" &&
      expected.prototype instanceof Error || expected === TypeError;
}

function checkError(
  error: unknown,
  expected: Expected | string | undefined,
  message: unknown,
): void {
  if (expected === undefined || typeof expected === "string") return;
  if (isConstructor(expected)) {
    ok(error instanceof expected, message ?? `threw ${error}`);
  } else if (expected instanceof RegExp) {
    match(String(error), expected, message);
  } else if (typeof expected === "function") {
    ok((expected as (e: Error) => unknown)(error as Error), message);
  } else {
    for (const [key, value] of Object.entries(expected)) {
      const found = (error as Record<string, unknown>)[key];
      if (value instanceof RegExp) match(String(found), value, message);
      else equal(found, value, message);
    }
  }
}

function ok(value: unknown, message?: unknown): asserts value {
  if (!value) fail(message, `${value} is not true`);
}

function equal(got: unknown, want: unknown, message?: unknown): void {
  if (!Object.is(got, want)) fail(message, `${got} is not ${want}`);
}

function match(text: string, pattern: RegExp, message?: unknown): void {
  if (!pattern.test(text)) fail(message, `"${text}" does not match ${pattern}`);
}

async function rejects(
  body: Promise<unknown> | (() => unknown),
  expected?: Expected,
  message?: unknown,
): Promise<void> {
  let caught: unknown[] = [];
  try {
    await (typeof body === "function" ? body() : body);
  } catch (error) {
    caught = [error];
  }
  if (caught.length === 0) fail(message, "nothing was rejected");
  checkError(caught[0], expected, message);
}

function throws(
  body: () => unknown,
  expected?: Expected,
  message?: unknown,
): void {
  let caught: unknown[] = [];
  try {
    body();
  } catch (error) {
    caught = [error];
  }
  if (caught.length === 0) fail(message, "nothing was thrown");
  checkError(caught[0], expected, message);
}

function notEqual(got: unknown, want: unknown, message?: unknown): void {
  if (Object.is(got, want)) fail(message, `both are ${got}`);
}

function deepEqual(got: unknown, want: unknown, message?: unknown): void {
  if (!isSame(got, want)) fail(message, `${JSON.stringify(got)} is not ${JSON.stringify(want)}`);
}

function notDeepEqual(got: unknown, want: unknown, message?: unknown): void {
  if (isSame(got, want)) fail(message, "both are equal");
}

const assert: Readonly<Record<string, unknown>> = {
  ok,
  equal,
  notEqual,
  deepEqual,
  notDeepEqual,
  match,
  rejects,
  throws,
};

export default assert;
