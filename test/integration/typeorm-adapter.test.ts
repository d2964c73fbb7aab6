import type { Pool } from 'pg';
import { DataSource, EntitySchema, type EntityManager } from 'typeorm';
import { describe, expect, onTestFinished, test } from 'vitest';
import { z } from 'zod';
import { bindDataSource, turnoutMigrations, typeOrmDatabase } from '../../adapters/typeorm/index.ts';
import { migrate, requireMigrations } from '../../src/database/index.ts';
import { defineEvent } from '../../src/event/index.ts';
import { publishEvents, registerEvents } from '../../src/outbox/index.ts';
import { waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

interface Note {
  text: string;
}
const NoteEntity = new EntitySchema<Note>({ name: 'note', columns: { text: { type: 'text', primary: true } } });

const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: 'orders',
  schema: z.object({ orderId: z.string() }),
  key: (order) => order.orderId,
});

async function newDatabase(options: { poolSize?: number; connectTimeoutMs?: number; bound?: boolean } = {}) {
  const { poolSize = 6, connectTimeoutMs = 3_000, bound = true } = options;
  const created = await database({ template: migrated('producer') });
  const dataSource = new DataSource({
    type: 'postgres',
    url: created.url,
    poolSize,
    entities: [NoteEntity],
    synchronize: true,
  });
  // Before initialize(), as legacy code is set up.
  if (bound) bindDataSource(dataSource);
  await dataSource.initialize();
  // The database's own hook, which drops it, was registered earlier and therefore runs later.
  onTestFinished(() => dataSource.destroy());
  const db = typeOrmDatabase(dataSource, { connectTimeoutMs });
  await registerEvents(db, 'orders', [OrderPlaced]);
  const pool: Pool = created.pool({ max: 2 });
  const notes = async (): Promise<string[]> =>
    (await pool.query<Note>('select text from note n order by n.text')).rows.map((row) => row.text);
  const published = async (): Promise<(string | null)[]> =>
    (await pool.query<{ key: string }>('select aggregateid as key from turnout.outbox o order by o.seq')).rows.map(
      (row) => row.key,
    );
  const publish = (tx: Parameters<typeof db.within>[0], orderId: string) =>
    publishEvents(db.within(tx), { source: 'orders', switchovers: [], deliver: false }, [
      { definition: OrderPlaced, data: { orderId } },
    ]);
  return { dataSource, db, pool, notes, published, publish };
}

const ended = (told: string[], name = '') => ({
  committed: () => void told.push(`${name}committed`),
  rolledBack: () => void told.push(`${name}rolled back`),
});

describe('publishing in a transaction of TypeORM', () => {
  test('takes an entity manager or a query runner, and is part of it', async () => {
    const { dataSource, notes, published, publish } = await newDatabase({ bound: false });
    await dataSource.transaction(async (manager) => {
      await manager.save(NoteEntity, { text: 'a' });
      await publish(manager, 'a');
    });
    const runner = dataSource.createQueryRunner();
    await runner.startTransaction();
    await runner.manager.insert(NoteEntity, { text: 'b' });
    await publish(runner, 'b');
    await runner.rollbackTransaction();
    await runner.startTransaction();
    await publish(runner, 'c');
    await runner.commitTransaction();
    await runner.query('BEGIN');
    await publish(runner, 'd');
    await runner.query('COMMIT');
    await runner.release();
    expect(await notes()).toEqual(['a']);
    expect(await published()).toEqual(['a', 'c', 'd']);
  });

  test('is refused outside one', async () => {
    const { dataSource, db } = await newDatabase();
    const required = expect.objectContaining({ code: 'TURNOUT_TRANSACTION_REQUIRED' });
    expect(() => db.within(dataSource.manager)).toThrow(required);
    const runner = dataSource.createQueryRunner();
    expect(() => db.within(runner)).toThrow(required);
    expect(() => db.within(runner.manager)).toThrow(required);
    await runner.connect();
    expect(() => db.within(runner)).toThrow(required);
    await runner.release();
  });
});

describe('the after-commit hook', () => {
  test('fires after the outermost commit only, and for what was rolled back with a savepoint never as committed', async () => {
    const { dataSource, db, pool } = await newDatabase({ bound: false });
    const told: string[] = [];
    await dataSource.transaction(async (manager) => {
      expect(db.whenEnded(manager, ended(told, 'outer '))).toBe(true);
      await manager.transaction(async (inner) => {
        db.whenEnded(inner, ended(told, 'inner '));
        await inner.transaction(async (innermost) => {
          db.whenEnded(innermost, ended(told, 'innermost '));
        });
      });
      await manager
        .transaction(async (failing) => {
          await failing.transaction(async (released) => void db.whenEnded(released, ended(told, 'released ')));
          db.whenEnded(failing, ended(told, 'failing '));
          throw new Error('no');
        })
        .catch(() => undefined);
      expect(told).toEqual(['released rolled back', 'failing rolled back']);
      await manager.save(NoteEntity, { text: 'a' });
      db.whenEnded(manager, {
        rolledBack: () => undefined,
        committed: () => void pool.query('select from note').then(({ rowCount }) => told.push(`sees ${rowCount}`)),
      });
    });
    await waitFor(() => told.includes('sees 1'));
    expect(told).toEqual([
      'released rolled back',
      'failing rolled back',
      'outer committed',
      'inner committed',
      'innermost committed',
      'sees 1',
    ]);
  });

  test('a commit that is a rollback is an error, and told as what it is', async () => {
    const { dataSource, db, published, publish } = await newDatabase({ bound: false });
    const told: string[] = [];
    const swallowed = dataSource.transaction(async (manager) => {
      await publish(manager, 'a');
      db.whenEnded(manager, ended(told));
      await manager.query('select 1/0').catch(() => undefined);
    });
    await expect(swallowed).rejects.toMatchObject({ code: 'TURNOUT_TRANSACTION_ABORTED' });
    expect(told).toEqual(['rolled back']);
    expect(await published()).toEqual([]);
  });

  test('a query runner that is used again starts anew', async () => {
    const { dataSource, db } = await newDatabase({ bound: false });
    const told: string[] = [];
    const runner = dataSource.createQueryRunner();
    for (const end of ['commitTransaction', 'rollbackTransaction', 'commitTransaction'] as const) {
      await runner.startTransaction();
      db.whenEnded(runner, ended(told));
      await runner[end]();
    }
    await runner.release();
    expect(told).toEqual(['committed', 'rolled back', 'committed']);
  });
});

describe('a transaction of Turnout', () => {
  test('hands out an entity manager, with TypeORM’s own hooks', async () => {
    const { dataSource, db, notes, published, publish } = await newDatabase({ poolSize: 1, connectTimeoutMs: 1_000 });
    const seen: string[] = [];
    dataSource.subscribers.push({
      afterTransactionStart: () => void seen.push('start'),
      afterTransactionCommit: () => void seen.push('commit'),
      afterTransactionRollback: () => void seen.push('rollback'),
    });
    const told: string[] = [];
    const result = await db.transaction(async (manager: EntityManager) => {
      await manager.save(NoteEntity, { text: 'a' });
      await publish(manager, 'a');
      db.whenEnded(manager, ended(told));
      expect(manager.queryRunner?.isTransactionActive).toBe(true);
      await manager.transaction(async (inner) => void (await inner.save(NoteEntity, { text: 'b' })));
      return manager.count(NoteEntity);
    });
    expect(result).toBe(2);
    await expect(db.transaction(() => Promise.reject(new Error('mine')))).rejects.toThrow('mine');
    expect(await notes()).toEqual(['a', 'b']);
    expect(await published()).toEqual(['a']);
    expect(told).toEqual(['committed']);
    // save() in a transaction begins none of its own; the nested one is a savepoint.
    expect(seen).toEqual(['start', 'start', 'commit', 'commit', 'start', 'rollback']);
    expect(db.maxConnections).toBe(1);
  });

  test('tells of the rollback of a nested one', async () => {
    const { db, published, publish } = await newDatabase();
    const told: string[] = [];
    await db.transaction(async (manager) => {
      await manager
        .transaction(async (inner) => {
          await publish(inner, 'a');
          db.whenEnded(inner, ended(told, 'inner '));
          throw new Error('no');
        })
        .catch(() => undefined);
      expect(told).toEqual(['inner rolled back']);
      await manager.transaction(async (inner) => {
        await publish(inner, 'b');
        db.whenEnded(inner, ended(told, 'other '));
      });
    });
    expect(told).toEqual(['inner rolled back', 'other committed']);
    expect(await published()).toEqual(['b']);
  });

  test('that has failed before its commit is an error of Turnout', async () => {
    const { db, notes } = await newDatabase();
    const told: string[] = [];
    const swallowed = db.transaction(async (manager) => {
      await manager.save(NoteEntity, { text: 'a' });
      db.whenEnded(manager, ended(told));
      await manager.query('select 1/0').catch(() => undefined);
    });
    await expect(swallowed).rejects.toMatchObject({ code: 'TURNOUT_TRANSACTION_ABORTED' });
    expect(told).toEqual(['rolled back']);
    expect(await notes()).toEqual([]);
  });

  test('is joined by all that uses the data source', async () => {
    const { dataSource, db, notes } = await newDatabase({ poolSize: 1, connectTimeoutMs: 1_000 });
    await db.transaction(async (manager) => {
      await dataSource.getRepository(NoteEntity).save({ text: 'repository' });
      await dataSource.manager.insert(NoteEntity, { text: 'manager' });
      await dataSource.query('insert into note values ($1)', ['query']);
      await dataSource.transaction(async (legacy) => void (await legacy.save(NoteEntity, { text: 'transaction' })));
      await dataSource
        .transaction(async (legacy) => {
          await legacy.save(NoteEntity, { text: 'undone' });
          await dataSource.getRepository(NoteEntity).save({ text: 'undone too' });
          throw new Error('no');
        })
        .catch(() => undefined);
      const runner = dataSource.createQueryRunner();
      await runner.startTransaction();
      await runner.manager.save(NoteEntity, { text: 'runner' });
      await runner.commitTransaction();
      await runner.release();
      expect(await manager.count(NoteEntity)).toBe(5);
      expect(await notes()).toEqual([]);
    });
    expect(await notes()).toEqual(['manager', 'query', 'repository', 'runner', 'transaction']);
    await dataSource.getRepository(NoteEntity).save({ text: 'later' });
    expect(await notes()).toHaveLength(6);
  });

  test('work side by side in it is serialised', async () => {
    const { dataSource, db, notes } = await newDatabase({ poolSize: 1, connectTimeoutMs: 1_000 });
    await db.transaction(async (manager) => {
      await Promise.all([
        ...Array.from({ length: 4 }, (_, n) =>
          dataSource
            .transaction(async (legacy) => {
              await legacy.save(NoteEntity, { text: `legacy${n}` });
              if (n % 2 === 1) throw new Error('no');
            })
            .catch(() => undefined),
        ),
        ...Array.from({ length: 3 }, (_, n) => manager.insert(NoteEntity, { text: `manager${n}` })),
        ...Array.from({ length: 3 }, (_, n) => dataSource.getRepository(NoteEntity).insert({ text: `repository${n}` })),
      ]);
    });
    expect(await notes()).toEqual([
      'legacy0',
      'legacy2',
      ...[0, 1, 2].map((n) => `manager${n}`),
      ...[0, 1, 2].map((n) => `repository${n}`),
    ]);
  });

  test('publishing from what joined it is told of the real end', async () => {
    const { dataSource, db, published, publish } = await newDatabase();
    const told: string[] = [];
    await db.transaction(async () => {
      await dataSource.transaction(async (legacy) => {
        await publish(legacy, 'a');
        db.whenEnded(legacy, ended(told));
      });
      expect(told).toEqual([]);
    });
    expect(told).toEqual(['committed']);
    expect(await published()).toEqual(['a']);
  });

  test('in a pool that is too small is an error, not a deadlock', async () => {
    const { db } = await newDatabase({ poolSize: 1, connectTimeoutMs: 100 });
    await expect(db.transaction(() => db.query('select 1'))).rejects.toMatchObject({ code: 'TURNOUT_POOL_TIMEOUT' });
    await expect(db.query<{ one: number }>('select 1 as one')).resolves.toMatchObject({
      rows: [{ one: 1 }],
      rowCount: 1,
    });
  });

  test('runs at the isolation level of the data source', async () => {
    const created = await database({ template: migrated('producer') });
    const dataSource = new DataSource({ type: 'postgres', url: created.url, isolationLevel: 'REPEATABLE READ' });
    await dataSource.initialize();
    onTestFinished(() => dataSource.destroy());
    const level = await typeOrmDatabase(dataSource).transaction((manager) =>
      manager.query<{ level: string }[]>("select current_setting('transaction_isolation') as level"),
    );
    expect(level).toEqual([{ level: 'repeatable read' }]);
  });
});

describe('migrations for TypeORM', () => {
  test('run with its own, once, and are known to turnout migrate', async () => {
    const created = await database();
    const dataSource = new DataSource({
      type: 'postgres',
      url: created.url,
      migrations: turnoutMigrations(['producer', 'consumer']),
      migrationsTransactionMode: 'each',
    });
    await dataSource.initialize();
    onTestFinished(() => dataSource.destroy());
    const db = typeOrmDatabase(dataSource);
    const ran = await dataSource.runMigrations();
    expect(ran.map((migration) => migration.name)).toContain('TurnoutProducerOutbox1764000000001');
    expect(new Set(ran.map((migration) => migration.name)).size).toBe(ran.length);
    expect(await dataSource.runMigrations()).toEqual([]);
    expect(await migrate(db, ['producer', 'consumer'])).toEqual([]);
    await requireMigrations(db, 'producer');
    await requireMigrations(db, 'consumer');
    await expect(dataSource.undoLastMigration()).rejects.toMatchObject({ code: 'TURNOUT_MIGRATION_FAILED' });
  });

  test('do nothing where turnout migrate has run', async () => {
    const created = await database({ template: migrated('producer') });
    const dataSource = new DataSource({
      type: 'postgres',
      url: created.url,
      migrations: turnoutMigrations(['producer']),
    });
    await dataSource.initialize();
    onTestFinished(() => dataSource.destroy());
    expect((await dataSource.runMigrations()).length).toBeGreaterThan(0);
  });
});
