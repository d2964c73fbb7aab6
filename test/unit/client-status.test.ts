import { expect, test } from 'vitest';
import { hasFailed } from '../../src/database/client.ts';
import type { ClientLike } from '../../src/database/client.ts';

/** A client whose server has answered with an error, and not yet that it is ready again. */
function afterError(status: 'known' | 'late' | 'never told', failed: boolean): ClientLike {
  let answered = status !== 'late';
  const state = failed ? 'E' : 'T';
  return {
    query: async () => {
      answered = true;
      if (failed && status === 'never told') throw new Error('current transaction is aborted');
    },
    ...(status === 'never told'
      ? {}
      : { getTransactionStatus: () => (answered ? state : 'T'), readyForQuery: answered }),
  } as unknown as ClientLike;
}

test.each(['known', 'late', 'never told'] as const)(
  'a failed transaction is seen when its status is %s',
  async (status) => {
    expect(await hasFailed(afterError(status, true))).toBe(true);
    expect(await hasFailed(afterError(status, false))).toBe(false);
  },
);
