import { setTimeout as delay } from 'node:timers/promises';

export interface WaitOptions {
  /** How long to keep trying. Default 10,000 ms. */
  readonly deadlineMs?: number;
  /** Pause between attempts. Default 20 ms. */
  readonly everyMs?: number;
  /** What is waited for, for the error message. */
  readonly what?: string;
}

type Falsy = false | null | undefined | 0 | '';

/**
 * Resolves with the first truthy value that `condition` gives; a throwing attempt counts as "not yet".
 * Rejects at the deadline, with the last error as its cause.
 *
 * @example await waitFor(async () => (await count(pool)) === 10, { what: 'ten rows in the inbox' });
 */
export async function waitFor<T>(
  condition: () => T | Promise<T>,
  options: WaitOptions = {},
): Promise<Exclude<T, Falsy>> {
  const { deadlineMs = 10_000, everyMs = 20, what = 'the condition' } = options;
  const deadline = performance.now() + deadlineMs;
  let last: unknown;
  let lastError: unknown;
  for (;;) {
    try {
      last = await condition();
      lastError = undefined;
      if (last) return last as Exclude<T, Falsy>;
    } catch (error) {
      lastError = error;
    }
    if (performance.now() >= deadline) break;
    await delay(everyMs);
  }
  const outcome = lastError === undefined ? `last value: ${String(last)}` : `last error: ${String(lastError)}`;
  throw new Error(`Waited ${deadlineMs} ms for ${what}, in vain (${outcome}).`, { cause: lastError });
}
