import type { TurnoutConfig } from '../config.ts';
import { requireMigrations } from '../database/index.ts';
import type { Database, MigrationSet } from '../database/index.ts';
import { isTurnoutError, TurnoutError } from '../errors/index.ts';
import { service, sleep } from '../lifecycle/index.ts';
import type { Service } from '../lifecycle/index.ts';
import { consumersOf } from './consumer-view.ts';

/** A database of the configuration, and what it needs. */
export interface ConfiguredDatabase {
  /** The source whose outbox it holds, or the first consumer whose inbox it holds. */
  readonly name: string;
  readonly database: Database;
  readonly sets: MigrationSet[];
}

/** One entry a database, although a service's outbox and its consumers often share one. */
export function databasesOf(config: TurnoutConfig): ConfiguredDatabase[] {
  const found = new Map<Database, ConfiguredDatabase>();
  const add = (name: string, database: Database, set: MigrationSet): void => {
    const target = found.get(database) ?? { name, database, sets: [] };
    if (!target.sets.includes(set)) target.sets.push(set);
    found.set(database, target);
  };
  if (config.database !== undefined) add(config.source ?? 'database', config.database, 'producer');
  for (const consumer of consumersOf(config)) add(consumer.name, consumer.database, 'consumer');
  for (const { name, database } of config.proxies ?? []) add(name, database, 'producer');
  return [...found.values()];
}

/** Throws TURNOUT_MIGRATION_MISSING, with the database's name, if it lacks migrations. */
export async function requireConfigured({ name, database, sets }: ConfiguredDatabase): Promise<void> {
  for (const set of sets) {
    try {
      await requireMigrations(database, set);
    } catch (error) {
      if (!isTurnoutError(error, 'TURNOUT_MIGRATION_MISSING')) throw error;
      const { rows } = await database.query<{ name: string }>('select current_database()::text as name');
      const missing = error.details['missing'] as readonly string[];
      throw new TurnoutError(
        'TURNOUT_MIGRATION_MISSING',
        `The database of ${name} (${rows[0]!.name}) lacks ${missing.join(', ')}.`,
        { details: { database: rows[0]!.name, of: name, missing }, cause: error },
      );
    }
  }
}

/**
 * As a service to be started before others: ends with TURNOUT_MIGRATION_MISSING where they would try again for ever. A database
 * that is away is left to them.
 */
export function migrationsThere(target: ConfiguredDatabase): Service {
  return service('migrations', async (signal, ready) => {
    const asked = requireConfigured(target).catch((error: unknown) => {
      if (isTurnoutError(error, 'TURNOUT_MIGRATION_MISSING')) throw error;
    });
    await Promise.race([asked, sleep(10_000, signal)]);
    asked.catch(() => undefined);
    ready();
    await sleep(2 ** 31 - 1, signal);
  });
}

/** SQLSTATEs of a schema, table, function or column that is not there. */
const missingObject = new Set(['3F000', '42P01', '42883', '42703']);

/**
 * Throws TURNOUT_MIGRATION_MISSING instead of what PostgreSQL says of a table or function that is not there, if that is why. Looked
 * at after the failure only: the way back to `rpc` stays one statement, also for a command that is older than the database.
 */
export async function explainMissing(config: TurnoutConfig, error: unknown): Promise<void> {
  if (!missingObject.has(sqlStateOf(error) ?? '')) return;
  for (const target of databasesOf(config)) {
    try {
      await requireConfigured(target);
    } catch (found) {
      // What can't be found out must not hide what happened.
      if (isTurnoutError(found, 'TURNOUT_MIGRATION_MISSING')) throw found;
    }
  }
}

function sqlStateOf(error: unknown, depth = 0): string | undefined {
  if (typeof error !== 'object' || error === null || depth > 5) return undefined;
  const { code, driverError, cause } = error as { code?: unknown; driverError?: unknown; cause?: unknown };
  if (typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code)) return code;
  return sqlStateOf(driverError, depth + 1) ?? sqlStateOf(cause, depth + 1);
}
