// Calls start by themselves when a transaction is committed, and only for events that were committed with it.
import { Query } from 'pg';
import type { PoolClient } from 'pg';
import { DataSource } from 'typeorm';
import { describe, expect, onTestFinished, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { typeOrmDatabase } from '../../adapters/typeorm/index.ts';
import type { Database } from '../../src/database/index.ts';
import { setStage } from '../../src/switchover/index.ts';
import { createTurnout } from '../../src/turnout.ts';
import type { Published, TurnoutOptions } from '../../src/turnout.ts';
import { waitFor } from '../support/index.ts';
import { emailSwitchover, OrderPlaced, producer } from './fixtures/switchover-world.ts';

/** A publisher whose calls are written down and answered, on `pg` and on TypeORM. */
async function world() {
  const from = await producer();
  const called: string[] = [];
  const email = emailSwitchover(() => '', {
    timeoutMs: 5_000,
    call: async (event) => {
      called.push(event.data.orderId);
      return { status: 200, headers: { 'turnout-outcome': 'applied' }, body: {} };
    },
  });
  await from.register(email);
  function turnoutOn<Tx, Open>(db: TurnoutOptions<Tx, Open>['database']) {
    const turnout = createTurnout<Tx, Open>({ source: 'orders', database: db, switchovers: [email] });
    onTestFinished(() => turnout.close());
    const publish = (tx: Open, orderId: string): Promise<Published> =>
      turnout.publish(tx, OrderPlaced, { orderId, step: 1 });
    return { turnout, publish };
  }
  async function typeOrm() {
    const dataSource = await new DataSource({ type: 'postgres', url: from.url, poolSize: 4 }).initialize();
    onTestFinished(() => dataSource.destroy());
    return { dataSource, ...turnoutOn(typeOrmDatabase(dataSource)) };
  }
  /** Both in one transaction, the first one undone by `undo`; then nothing but the second is called. */
  async function expectOnlySecond(undone: Published, kept: Published): Promise<void> {
    expect(await kept.reply(email)).toMatchObject({ status: 'done' });
    expect(await undone.reply(email).catch((error: { code: string }) => error.code)).toSatisfy(
      (outcome: string | { status: string; why: string }) =>
        outcome === 'TURNOUT_TRANSACTION_ABORTED' ||
        (typeof outcome === 'object' && outcome.status === 'pending' && outcome.why.startsWith('nothing is owed')),
    );
    expect(called).toEqual(['kept']);
    await waitFor(async () => (await from.owed()).length === 0);
    const { rows } = await from.pool.query('select aggregateid from turnout.outbox');
    expect(rows).toEqual([{ aggregateid: 'kept' }]);
  }
  return { from, email, called, turnoutOn, typeOrm, expectOnlySecond };
}

/** A database that notes the statements it runs outside of transactions. */
function observed<Tx>(db: Database<Tx>, statements: string[], fail = false): Database<Tx> {
  return {
    ...db,
    query(text, values) {
      statements.push(text);
      return fail ? Promise.reject(new Error('no connection')) : db.query(text, values);
    },
  };
}

describe('an event that was rolled back to a savepoint is not called for', () => {
  test('in a transaction of TypeORM’s own, with plain SQL', async () => {
    const w = await world();
    const { dataSource, publish } = await w.typeOrm();
    const [undone, kept] = await dataSource.transaction(async (manager) => {
      await manager.query('savepoint a');
      const first = await publish(manager, 'undone');
      await manager.query('rollback to savepoint a');
      return [first, await publish(manager, 'kept')];
    });
    await w.expectOnlySecond(undone, kept);
  });

  test('in turnout.transaction() on TypeORM, with plain SQL', async () => {
    const w = await world();
    const { turnout, publish } = await w.typeOrm();
    const [undone, kept] = await turnout.transaction(async (manager) => {
      await manager.query('savepoint a');
      const first = await publish(manager, 'undone');
      await manager.query('rollback to savepoint a');
      return [first, await publish(manager, 'kept')];
    });
    await w.expectOnlySecond(undone, kept);
  });

  const submitted = (tx: PoolClient, sql: string): Promise<void> =>
    new Promise((resolve, reject) => {
      // As cursors and query streams do, it drives the connection itself.
      const query = tx.query(new Query(sql));
      query.once('end', () => resolve());
      query.once('error', reject);
    });
  const texts = (tx: PoolClient, sql: string): Promise<unknown> => tx.query(sql);
  test.each([
    ['plain SQL', texts, 'savepoint a', 'rollback to savepoint a'],
    ['several statements in one text', texts, 'select 1; savepoint a', 'select 2; rollback to a; select 3'],
    ['a name that is escaped', texts, 'savepoint "data"', String.raw`rollback to savepoint U&"d\0061ta"`],
    ['query objects', submitted, 'savepoint a', 'rollback to savepoint a'],
  ])('in turnout.transaction() on pg, with %s', async (_, send, set, undo) => {
    const w = await world();
    const { turnout, publish } = w.turnoutOn(w.from.database);
    const [undone, kept] = await turnout.transaction(async (tx) => {
      await send(tx, set);
      const first = await publish(tx, 'undone');
      await send(tx, undo);
      return [first, await publish(tx, 'kept')];
    });
    await w.expectOnlySecond(undone, kept);
  });
});

describe('what was committed', () => {
  test('is not looked up where Turnout has seen that nothing could be taken back', async () => {
    const w = await world();
    const statements: string[] = [];
    const { turnout, publish } = w.turnoutOn(observed(w.from.database, statements));
    const isLookUp = (text: string): boolean => /^\s*select/.test(text);
    const published = await turnout.transaction(async (tx) => {
      await tx.query('insert into business values ($1, $2)', ['a', 1]);
      return [await publish(tx, 'a'), await turnout.transaction((inner) => publish(inner, 'b'))];
    });
    for (const each of published) expect(await each.reply(w.email)).toMatchObject({ status: 'done' });
    expect(w.called).toEqual(['a', 'b']);
    expect(statements.filter(isLookUp)).toEqual([]);
    // What has no text to look at, a connection that is driven past Turnout, and every rollback, even one that was followed.
    const doubtful: ((tx: PoolClient) => Promise<unknown>)[] = [
      (tx) => tx.query({ name: 'named', text: 'select 1' }),
      (tx) => Promise.resolve((tx as unknown as { connection: unknown }).connection),
      (tx) => tx.query('savepoint s').then(() => tx.query('rollback to s')),
      () => turnout.transaction(() => Promise.reject(new Error('no'))).catch(() => undefined),
    ];
    for (const [index, doubt] of doubtful.entries()) {
      statements.length = 0;
      const one = await turnout.transaction(async (tx) => {
        await doubt(tx);
        return publish(tx, `c${index}`);
      });
      expect(await one.reply(w.email)).toMatchObject({ status: 'done' });
      expect(statements.filter(isLookUp)).toHaveLength(1);
    }
  });

  test('is otherwise looked up once for all events of a commit, and not at all if no call is owed', async () => {
    const w = await world();
    const statements: string[] = [];
    const { turnout, publish } = w.turnoutOn(observed(w.from.database, statements));
    const published = await turnout.transaction(async (tx) => {
      await tx.query('savepoint s; rollback to savepoint s');
      const one = [await publish(tx, 'a'), await publish(tx, 'b')];
      const event = OrderPlaced;
      return [
        ...one,
        ...(await turnout.publishAll(
          tx,
          ['c', 'd'].map((orderId) => ({ event, data: { orderId, step: 1 } })),
        )),
      ];
    });
    for (const each of published) await each.reply(w.email);
    expect(w.called.sort()).toEqual(['a', 'b', 'c', 'd']);
    const isLookUp = (text: string): boolean => /^\s*select/.test(text);
    expect(statements.filter(isLookUp)).toHaveLength(1);

    await setStage(w.from.database, 'orders', w.email.name, 'event', { reason: 'test', force: true });
    statements.length = 0;
    const routed = await turnout.transaction((tx) => publish(tx, 'e'));
    expect(await routed.reply(w.email)).toEqual({ route: 'event' });
    await turnout.close();
    expect(statements).toEqual([]);
  });

  test('is left to the sweeper if it can’t be looked up', async () => {
    const w = await world();
    const { turnout, publish } = w.turnoutOn(observed(w.from.database, [], true));
    const published = await turnout.transaction(async (tx) => {
      await tx.query('savepoint s; rollback to savepoint s');
      return publish(tx, 'a');
    });
    expect(await published.reply(w.email)).toMatchObject({
      status: 'pending',
      why: expect.stringContaining('could not be seen'),
    });
    expect(w.called).toEqual([]);
    expect(await w.from.owed()).toMatchObject([{ due: null }]);
  });

  test('is called for, though the publisher closes right after the commit', async () => {
    const w = await world();
    const { turnout, publish } = w.turnoutOn(w.from.database);
    const published = await turnout.transaction((tx) => publish(tx, 'a'));
    await turnout.close();
    expect(w.called).toEqual(['a']);
    expect(await published.reply(w.email)).toMatchObject({ status: 'done' });
  });

  test('is called for on a pool of one connection', async () => {
    const w = await world();
    const pool = w.from.pool;
    pool.options.max = 1;
    const { turnout, publish } = w.turnoutOn(pgDatabase(pool));
    const published = await Promise.all(['a', 'b', 'c'].map((id) => turnout.transaction((tx) => publish(tx, id))));
    for (const each of published) expect(await each.reply(w.email)).toMatchObject({ status: 'done' });
    await waitFor(async () => (await w.from.owed()).length === 0);
  });
});
