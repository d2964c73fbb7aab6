import type { Queryable } from '../../database/index.ts';
import { fromDatabaseError } from '../../errors/index.ts';
import type { WatchedTable } from './writes.ts';

/** Lets comparisons see what is written to a table, with the rights of its owner. Throws TURNOUT_SHADOW_TABLE_INVALID. */
export async function watchTable(database: Queryable, table: string): Promise<void> {
  await translated(database.query('select turnout.watch_table($1::text::regclass)', [table]));
}

/** Takes back {@link watchTable}. */
export async function unwatchTable(database: Queryable, table: string): Promise<void> {
  await translated(database.query('select turnout.unwatch_table($1::text::regclass)', [table]));
}

/** The tables that are watched. */
export async function watchedTables(database: Queryable): Promise<WatchedTable[]> {
  const { rows } = await database.query<WatchedTable>(
    `select name, key_columns as "keyColumns", generated_columns as "generatedColumns", referring_columns as "referringColumns"
       from turnout.watched_table order by name`,
  );
  return rows;
}

/**
 * Lets a group of mismatches not count until a date. Throws TURNOUT_SHADOW_GROUP_UNKNOWN, TURNOUT_REASON_MISSING.
 *
 * @example
 * await waiveMismatch(database, 'email', '7c1f09aa31d2', { until: new Date('2026-12-24'), reason: 'old footer, MAIL-31' });
 */
export async function waiveMismatch(
  database: Queryable,
  consumer: string,
  fingerprint: string,
  { until, reason }: { readonly until: Date; readonly reason: string },
): Promise<void> {
  await translated(
    database.query('select turnout.waive_mismatch($1, $2, $3, $4)', [
      consumer,
      fingerprint,
      until.toISOString(),
      reason,
    ]),
  );
}

async function translated<Result>(asked: Promise<Result>): Promise<Result> {
  try {
    return await asked;
  } catch (error) {
    throw fromDatabaseError(error);
  }
}
