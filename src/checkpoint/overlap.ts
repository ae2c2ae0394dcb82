import type { ReadOptions } from "../formats/source.ts";

/** Yields the same items, each asked for while the one before it is worked on. */
export async function* ahead<T>(items: AsyncGenerator<T>): AsyncGenerator<T> {
  let next = items.next();
  try {
    for (;;) {
      const step = await next;
      if (step.done) return;
      next = items.next();
      next.catch(() => {}); // the error is that of the await above
      yield step.value;
    }
  } finally {
    await next.catch(() => {});
    await items.return(undefined);
  }
}

/** Runs `body` for all items, `limit` at a time. The first failure stops the others, and is thrown when they stand. */
export async function forEachOf<T>(
  items: readonly T[],
  limit: number,
  { signal }: ReadOptions,
  body: (item: T, options: ReadOptions) => Promise<void>,
): Promise<void> {
  const failure = new AbortController();
  const both = signal ? AbortSignal.any([signal, failure.signal]) : failure.signal;
  const queue = items.values();
  const lanes = Array.from({ length: Math.min(limit, items.length) }, async () => {
    for (const item of queue) {
      both.throwIfAborted();
      await body(item, { signal: both });
    }
  });
  for (const lane of lanes) lane.catch((error) => failure.abort(error));
  await Promise.allSettled(lanes);
  both.throwIfAborted();
}
