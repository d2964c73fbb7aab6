// For test files of the project `integration`: the run's shared parts. Not for programs; those call `startPostgres`
// and its like themselves.
import { afterAll, inject, onTestFinished, TestRunner } from 'vitest';
import { createDatabase, type Database, type DatabaseOptions } from './database.ts';
import './global-setup.ts';
import type { Kafka } from './kafka.ts';
import type { Postgres } from './postgres.ts';
import type { Redis } from './redis.ts';

type Shared<T> = Omit<T, 'stop' | 'kill' | 'restart' | 'pid'>;

/** The run's PostgreSQL. Tests that kill it start their own: `startPostgres({ restartable: true })`. */
export const sharedPostgres = (): Promise<Shared<Postgres>> => askFor('postgres');

/** The run's Apache Kafka: use topics and groups named by `uniqueName`. Tests that kill it start their own. */
export const sharedKafka = (): Promise<Shared<Kafka>> => askFor('kafka');

/** The run's Redis. */
export const sharedRedis = (): Promise<Shared<Redis>> => askFor('redis');

/**
 * A fresh database on the run's PostgreSQL, dropped when the file is done or, called within a test, when that test is;
 * a connection that is open by then fails it. Call it at the top level of a file, in `describe`, or in a test (in
 * `beforeAll` use `createDatabase` and drop it yourself).
 *
 * @example
 * const { pool } = await database({ template: producerTemplate });
 */
export async function database(options: DatabaseOptions = {}): Promise<Database> {
  const created = await createDatabase(await sharedPostgres(), options);
  if (TestRunner.getCurrentTest()) onTestFinished(() => created.drop());
  else afterAll(() => created.drop());
  return created;
}

const answers = new Map<string, Promise<unknown>>();

function askFor<T>(name: string): Promise<T> {
  const asked = answers.get(name) ?? ask(name);
  answers.set(name, asked);
  return asked as Promise<T>;
}

async function ask(name: string): Promise<unknown> {
  const response = await fetch(`${inject('turnoutPartsUrl')}/${name}`);
  if (!response.ok) throw new Error(await response.text());
  return await response.json();
}
