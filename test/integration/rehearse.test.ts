import type { Pool, PoolClient } from 'pg';
import { DataSource } from 'typeorm';
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { joinPool, pgDatabase } from '../../adapters/pg/index.ts';
import { bindDataSource, typeOrmDatabase } from '../../adapters/typeorm/index.ts';
import type { Database } from '../../src/database/index.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import { waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';

let pool: Pool;
let legacy: Pool;
let db: Database<PoolClient>;

beforeEach(async () => {
  pool = (await database()).pool({ max: 4 });
  await pool.query('create table note (id bigint generated always as identity, text text not null unique)');
  legacy = joinPool(pool);
  db = pgDatabase(pool);
});

const notes = async (): Promise<string[]> =>
  (await pool.query<{ text: string }>('select text from note order by id')).rows.map((row) => row.text);
const write = (to: { query(text: string, values: unknown[]): Promise<unknown> }, text: string) =>
  to.query('insert into note (text) values ($1)', [text]);

/** What a transaction keeps that rehearses in its middle. */
async function around(work: (tx: PoolClient) => Promise<unknown>, timeoutMs = 5_000) {
  const rehearsed = await db.transaction(async (tx) => {
    await write(tx, 'before');
    const result = await db.rehearse(work, { timeoutMs });
    await write(tx, 'after');
    return result;
  });
  return { rehearsed, notes: await notes() };
}

const both = ['before', 'after'];

describe('a rehearsal', () => {
  test('sees what was written before it, and leaves nothing', async () => {
    const { rehearsed, notes } = await around(async (tx) => {
      await write(tx, 'inside');
      await write(legacy, 'joined');
      return (await tx.query('select count(*)::int as count from note')).rows[0].count;
    });
    expect(rehearsed).toEqual({ kind: 'done', result: 3 });
    expect(notes).toEqual(both);
  });

  test('gives what was thrown', async () => {
    const { rehearsed, notes } = await around(async (tx) => {
      await write(tx, 'inside');
      throw new Error('no');
    });
    expect(rehearsed).toMatchObject({ kind: 'threw', error: { message: 'no' } });
    expect(notes).toEqual(both);
  });

  test.each([
    'commit',
    'rollback',
    'end',
    'insert into note (text) values (1); commit',
    'rollback to savepoint turnout_1',
    'release savepoint "turnout_1"',
    'begin isolation level serializable',
    "set statement_timeout = '0'",
    "select set_config('statement_timeout', '0', false)",
    'select pg_advisory_lock(1)',
    'prepare x as select 1',
    'reset all',
    // And whatever hides them.
    '/* x */ prepare x as select 1',
    '/* a /* b */ c */ -- d\n reset all',
    'select "pg_advisory_lock"(7)',
    'select pg_advisory_lock/**/(7)',
    'select U&"pg\\005fadvisory\\005flock"(7)',
    'rollback to savepoint U&"turnout\\005f1"',
    'rollback to savepoint U&"turnout!005f1" uescape \'!\'',
    "select set_config('statement_' || 'timeout', '0', false)",
    "select '--' as x; reset all",
  ])('refuses %j, and leaves nothing', async (sql) => {
    const { rehearsed, notes } = await around(async (tx) => {
      await write(tx, 'inside');
      await tx.query(sql);
    });
    expect(rehearsed).toMatchObject({ kind: 'threw', error: { code: 'TURNOUT_JOIN_REFUSED' } });
    expect(notes).toEqual(both);
  });

  test('leaves nothing of what joined with a transaction of its own, ended or not', async () => {
    const { notes } = await around(async () => {
      const one = await legacy.connect();
      await one.query('begin');
      await write(one, 'one');
      await one.query('commit');
      const other = await legacy.connect();
      await other.query('begin');
      await write(other, 'other');
      await db.transaction(async (inner) => write(inner, 'inner'));
    }, 300);
    expect(notes).toEqual(both);
  });

  test('leaves nothing of a handler that swallowed an error', async () => {
    const { rehearsed, notes } = await around(async (tx) => {
      await write(tx, 'before').catch(() => undefined);
      await tx.query('select 1');
    });
    expect(rehearsed).toMatchObject({ kind: 'threw', error: { code: '25P02' } });
    expect(notes).toEqual(both);
  });

  test('ends work that never settles, and refuses what it asks for afterwards, for ever', async () => {
    const heard: unknown[] = [];
    let wake: () => void = () => undefined;
    const woken = new Promise<void>((resolve) => (wake = resolve));
    let kept: PoolClient | undefined;
    const { rehearsed, notes: first } = await around(async (tx) => {
      kept = tx;
      await write(tx, 'inside');
      await woken;
      for (const to of [tx, legacy]) await write(to, 'late').catch((error) => heard.push(error.code));
      await db.transaction((inner) => write(inner, 'inner')).catch((error) => heard.push(error.code));
      await legacy
        .connect()
        .then((client) => client.query('begin'))
        .catch((error) => heard.push(error.code));
      heard.push('end');
    }, 50);
    expect(rehearsed).toEqual({ kind: 'late' });
    expect(first).toEqual(both);
    wake();
    await waitFor(() => heard.includes('end'), { what: 'the work to end' });
    expect(heard).toEqual([...Array<string>(4).fill('TURNOUT_JOIN_REFUSED'), 'end']);
    // Carried out of its flow, too.
    await expect(write(kept!, 'carried')).rejects.toMatchObject({ code: 'TURNOUT_JOIN_REFUSED' });
    expect(await notes()).toEqual(both);
  });

  test('is inside wherever its transaction is carried to while it lasts', async () => {
    const asked: PoolClient[] = [];
    const answers: Promise<unknown>[] = [];
    // Something outside that works for others: its flow knows nothing of the rehearsal.
    const outside = setInterval(() => {
      for (const tx of asked.splice(0)) answers.push(write(tx, 'carried'));
    }, 1);
    try {
      const { rehearsed, notes } = await around(async (tx) => {
        asked.push(tx);
        await waitFor(() => answers.length > 0, { what: 'the one outside' });
        await Promise.all(answers);
      });
      expect(rehearsed).toMatchObject({ kind: 'done' });
      expect(notes).toEqual(both);
    } finally {
      clearInterval(outside);
    }
  });

  test('ends a statement that runs too long, or waits for a lock', async () => {
    await write(pool, 'locked');
    const holder = await pool.connect();
    await holder.query('begin');
    await holder.query("update note set text = 'locked' where text = 'locked'");
    try {
      for (const sql of ['select pg_sleep(60)', "update note set text = 'x' where text = 'locked'"]) {
        const begun = performance.now();
        const rehearsed = await db.transaction(() => db.rehearse((tx) => tx.query(sql), { timeoutMs: 100 }));
        expect(rehearsed.kind).not.toBe('done');
        expect(performance.now() - begun).toBeLessThan(20_000);
      }
    } finally {
      await holder.query('rollback');
      holder.release();
    }
  });

  test('lets a handler say what only looks like that', async () => {
    const { rehearsed } = await around(async (tx) => {
      await tx.query("select 'reset; load', e'\\'; listen x' as \"checkpoint\" -- ; reset all");
      await tx.query("select set_config('app.user', 'x', true)");
    });
    expect(rehearsed).toMatchObject({ kind: 'done' });
  });

  test('ends a statement whose time-out was taken away where nobody could see it, and no other', async () => {
    await pool.query(`create function patient() returns void language plpgsql as $$
      begin perform set_config(concat('statement_', 'timeout'), '0', true); end $$`);
    const begun = performance.now();
    const { rehearsed, notes } = await around(async (tx) => {
      await tx.query('select patient()');
      await tx.query('select pg_sleep(60)');
    }, 100);
    expect(rehearsed.kind).not.toBe('done');
    expect(performance.now() - begun).toBeLessThan(20_000);
    expect(notes).toEqual(both);
  });

  test('gives settings, locks and time-outs back', async () => {
    await db.transaction(async (tx) => {
      await tx.query("set local lock_timeout = '7s'");
      await db.rehearse(
        async (inner) => {
          await inner.query("set timezone = 'Asia/Tokyo'");
          await inner.query('create temp table scratch (x integer)');
          await inner.query('lock table note in access exclusive mode');
          await inner.query('select pg_advisory_xact_lock(77)');
        },
        { timeoutMs: 5_000 },
      );
      const { rows } = await tx.query(
        `select current_setting('lock_timeout') as lock, current_setting('statement_timeout') as statement,
                current_setting('timezone') <> 'Asia/Tokyo' as zone, to_regclass('pg_temp.scratch') as scratch,
                (select count(*)::int from pg_locks where pid = pg_backend_pid() and (locktype = 'advisory' or mode = 'AccessExclusiveLock')) as locks`,
      );
      expect(rows).toEqual([{ lock: '7s', statement: '0', zone: true, scratch: null, locks: 0 }]);
    });
  });

  test('tells what was registered inside of a rollback, though the transaction commits', async () => {
    const told: string[] = [];
    const ending = (name: string) => ({
      committed: () => void told.push(`${name} committed`),
      rolledBack: () => void told.push(`${name} rolled back`),
    });
    await db.transaction(async (tx) => {
      db.whenEnded(tx, ending('around'));
      await db.rehearse(
        async (inner) => {
          db.whenEnded(inner, ending('inside'));
          await db.transaction(async (nested) => db.whenEnded(nested, ending('nested')));
        },
        { timeoutMs: 5_000 },
      );
    });
    expect(told.sort()).toEqual(['around committed', 'inside rolled back', 'nested rolled back']);
  });

  test('fails the transaction if its connection is lost', async () => {
    const running = db.transaction(async (tx) => {
      await write(tx, 'before');
      const { rows } = await tx.query('select pg_backend_pid() as pid');
      await db.rehearse(() => pool.query('select pg_terminate_backend($1)', [rows[0].pid]).then(() => sleep(50)), {
        timeoutMs: 5_000,
      });
    });
    await expect(running).rejects.toMatchObject({ code: expect.stringMatching(/^TURNOUT_/) });
    expect(await notes()).toEqual([]);
  });

  test('needs a transaction', async () => {
    await expect(db.rehearse(async () => undefined, { timeoutMs: 100 })).rejects.toMatchObject({
      code: 'TURNOUT_TRANSACTION_REQUIRED',
    });
  });
});

test('a rehearsal of TypeORM leaves nothing either, whatever its manager is asked', async () => {
  const created = await database();
  const dataSource = await new DataSource({ type: 'postgres', url: created.url, poolSize: 3 }).initialize();
  onTestFinished(() => dataSource.destroy());
  await dataSource.query('create table note (text text)');
  const orm = typeOrmDatabase(bindDataSource(dataSource));
  const insert = (to: { query(sql: string, values: unknown[]): Promise<unknown> }, text: string) =>
    to.query('insert into note (text) values ($1)', [text]);
  const refusals: unknown[] = [];
  await orm.transaction(async (manager) => {
    await insert(manager, 'before');
    const rehearsed = await orm.rehearse(
      async (inner) => {
        await insert(inner, 'inside');
        await insert(dataSource, 'joined');
        await inner.transaction((nested) => insert(nested, 'nested'));
        for (const sql of ['commit', 'rollback'])
          await inner.query(sql).catch((error: { driverError?: { code: unknown }; code?: unknown }) => {
            refusals.push(error.driverError?.code ?? error.code);
          });
        return (await inner.query('select text from note')).length as number;
      },
      { timeoutMs: 10_000 },
    );
    expect(rehearsed).toEqual({ kind: 'done', result: 4 });
    await insert(manager, 'after');
  });
  expect(refusals).toEqual(['TURNOUT_JOIN_REFUSED', 'TURNOUT_JOIN_REFUSED']);
  expect(await dataSource.query('select text from note')).toEqual([{ text: 'before' }, { text: 'after' }]);
});
