/** `node:test` for a page: collects what is registered, and runs it when the page is asked to. */

/** One registered test. */
export interface PageTest {
  readonly name: string;
  readonly skip?: string;
  readonly body: () => unknown;
}

export const TESTS: PageTest[] = [];

export function test(
  name: string,
  ...rest: [() => unknown] | [{ skip?: string }, () => unknown]
): void {
  const [options, body] = rest.length === 1 ? [{}, rest[0]] : rest;
  TESTS.push({ name, ...options, body });
}

/** Runs all and tells what failed. */
export async function runAll(): Promise<
  { passed: number; skipped: string[]; failed: string[] }
> {
  const outcome = {
    passed: 0,
    skipped: [] as string[],
    failed: [] as string[],
  };
  for (const { name, skip, body } of TESTS) {
    if (skip !== undefined) outcome.skipped.push(`${name}: ${skip}`);
    else {
      try {
        await body();
        outcome.passed++;
      } catch (error) {
        outcome.failed.push(`${name}: ${error}`);
      }
    }
  }
  return outcome;
}
