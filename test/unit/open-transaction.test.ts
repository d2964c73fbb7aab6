import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isTurnoutError } from '../../src/errors/index.ts';
import { openTransaction } from '../../src/database/open-transaction.ts';

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A connection that knows savepoints: what a transaction holds at its end is what a database would. */
function fakeConnection() {
  let rows: string[] = [];
  const savepoints: { name: string; rows: string[] }[] = [];
  let running = 0;
  let overlapped = false;
  const execute = async (sql: string): Promise<void> => {
    overlapped ||= ++running > 1;
    await turn();
    for (const part of sql.split(';').map((each) => each.trim())) {
      const [, command, name] =
        /^(savepoint|release savepoint|rollback to savepoint|insert|rollback|commit)\s*(\w*)$/.exec(part)!;
      const at = savepoints.findIndex((savepoint) => savepoint.name === name);
      if (command === 'insert') rows.push(name!);
      if (command === 'savepoint') savepoints.push({ name: name!, rows: [...rows] });
      if (command === 'release savepoint') {
        if (at === -1) throw new Error(`no savepoint ${name}`);
        savepoints.length = at;
      }
      if (command === 'rollback to savepoint') {
        if (at === -1) throw new Error(`no savepoint ${name}`);
        rows = [...savepoints[at]!.rows];
        savepoints.length = at + 1;
      }
      if (command === 'rollback') rows = [];
    }
    running--;
  };
  return { execute, rows: () => rows, overlapped: () => overlapped };
}

describe('an open transaction', () => {
  test('keeps exactly what was committed, however its users interleave', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            writes: fc.integer({ min: 0, max: 3 }),
            inner: fc.boolean(),
            commit: fc.boolean(),
            innerCommit: fc.boolean(),
          }),
          { minLength: 1, maxLength: 6 },
        ),
        async (users) => {
          const connection = fakeConnection();
          const transaction = openTransaction(connection.execute, () => false, 1_000);
          const told: string[] = [];
          const ending = (name: string) => ({
            committed: () => void told.push(name),
            rolledBack: () => void told.push(`-${name}`),
          });
          const expected: string[] = [];
          const expectedTold: string[] = [];
          await Promise.all(
            users.map(async (user, index) => {
              const { scope, ready } = transaction.begin(transaction.root);
              await ready;
              for (let n = 0; n < user.writes; n++) {
                await transaction.run(scope, () => connection.execute(`insert u${index}w${n}`));
                if (user.commit) expected.push(`u${index}w${n}`);
              }
              transaction.whenEnded(scope, ending(`u${index}`));
              expectedTold.push(user.commit ? `u${index}` : `-u${index}`);
              if (user.inner) {
                const inner = transaction.begin(scope);
                await inner.ready;
                await transaction.run(inner.scope, () => connection.execute(`insert u${index}inner`));
                transaction.whenEnded(inner.scope, ending(`u${index}i`));
                expectedTold.push(user.commit && user.innerCommit ? `u${index}i` : `-u${index}i`);
                if (user.innerCommit) await transaction.commit(inner.scope);
                else await transaction.rollback(inner.scope);
                if (user.commit && user.innerCommit) expected.push(`u${index}inner`);
              }
              if (user.commit) await transaction.commit(scope);
              else await transaction.rollback(scope);
            }),
          );
          await transaction.finish(() => connection.execute('commit').then(() => true), { abandon: false });
          expect([...connection.rows()].sort()).toEqual(expected.sort());
          expect(told.sort()).toEqual(expectedTold.sort());
          expect(connection.overlapped()).toBe(false);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('makes a statement of others wait while a savepoint that is not theirs is open', async () => {
    const connection = fakeConnection();
    const transaction = openTransaction(connection.execute, () => false);
    const { scope, ready } = transaction.begin(transaction.root);
    await ready;
    const outside = transaction.run(transaction.root, () => connection.execute('insert outside'));
    await transaction.run(scope, () => connection.execute('insert inside'));
    expect(connection.rows()).toEqual(['inside']);
    await transaction.rollback(scope);
    await outside;
    expect(connection.rows()).toEqual(['outside']);
  });

  test('refuses, after its patience, to wait for a savepoint that nobody ends', async () => {
    const connection = fakeConnection();
    const transaction = openTransaction(connection.execute, () => false, 20);
    await transaction.begin(transaction.root).ready;
    const outside = transaction.run(transaction.root, () => connection.execute('insert outside'));
    await expect(outside).rejects.toSatisfy((error) => isTurnoutError(error, 'TURNOUT_JOIN_REFUSED'));
    await transaction.finish(() => connection.execute('rollback').then(() => false), { abandon: true });
    expect(connection.rows()).toEqual([]);
    await expect(transaction.run(transaction.root, () => connection.execute('insert late'))).rejects.toThrow(
      /has ended/,
    );
  });

  test('refuses, after its patience, to wait for a statement that stays', async () => {
    const connection = fakeConnection();
    const transaction = openTransaction(connection.execute, () => false, 20);
    let close = (): void => undefined;
    const staying = transaction.run(transaction.root, () => new Promise<void>((resolve) => (close = resolve)), {
      stays: true,
    });
    const refused = (error: unknown): boolean => isTurnoutError(error, 'TURNOUT_JOIN_REFUSED');
    await expect(transaction.run(transaction.root, () => connection.execute('insert refused'))).rejects.toSatisfy(
      refused,
    );
    close();
    await staying;
    await transaction.run(transaction.root, () => connection.execute('insert later'));

    void transaction.run(transaction.root, () => new Promise<void>(() => undefined), { stays: true });
    const commit = transaction.finish(() => connection.execute('commit').then(() => true), { abandon: false });
    await expect(commit).rejects.toSatisfy(refused);
    expect(transaction.isStuck()).toBe(false);
    let told = '';
    transaction.whenEnded(transaction.root, {
      committed: () => (told += 'committed'),
      rolledBack: () => (told += 'rolled back'),
    });
    await transaction.finish(() => connection.execute('rollback').then(() => false), { abandon: true });
    expect([transaction.isStuck(), told]).toEqual([true, 'rolled back']);
  });

  test('waits for a statement that takes long, however long it takes', async () => {
    const connection = fakeConnection();
    const transaction = openTransaction(connection.execute, () => false, 5);
    let finish = (): void => undefined;
    const long = transaction.run(transaction.root, () => new Promise<void>((resolve) => (finish = resolve)));
    const after = transaction.run(transaction.root, () => connection.execute('insert after'));
    setTimeout(() => finish(), 50);
    await Promise.all([long, after]);
    await transaction.finish(() => connection.execute('commit').then(() => true), { abandon: false });
    expect(connection.rows()).toEqual(['after']);
  });

  test('commits statements that nobody awaited, before its end', async () => {
    const connection = fakeConnection();
    const transaction = openTransaction(connection.execute, () => false);
    const forgotten = [1, 2, 3].map((n) =>
      transaction.run(transaction.root, () => connection.execute(`insert forgotten${n}`)),
    );
    await transaction.finish(() => connection.execute('commit').then(() => true), { abandon: false });
    expect(connection.rows()).toHaveLength(3);
    await Promise.all(forgotten);
  });

  test('rolls back, like Postgres, when a failed savepoint is committed', async () => {
    const connection = fakeConnection();
    let failed = false;
    const transaction = openTransaction(connection.execute, () => failed);
    const { scope, ready } = transaction.begin(transaction.root);
    await ready;
    await transaction.run(scope, () => connection.execute('insert lost'));
    failed = true;
    expect(await transaction.commit(scope)).toBe(false);
    expect(connection.rows()).toEqual([]);
  });
});
