import type { Queryable } from '../database/index.ts';
import { fromDatabaseError } from '../errors/index.ts';

/** What a rebase has done to a source. */
export interface RebasedSource {
  readonly source: string;
  /** In which the relay counts from 1 now. */
  readonly generation: number;
  /** Whether the database had been copied from another cluster, and everything in the outbox is published again. */
  readonly copied: boolean;
}

/**
 * Lets the relay go on after TURNOUT_DATABASE_REWOUND: all sources of the database get a new generation.
 * Throws TURNOUT_RELAY_LEADING, TURNOUT_REASON_MISSING.
 *
 * @example
 * await rebaseRelay(database, 'restored from the backup of 03:00; INC-17');
 */
export async function rebaseRelay(database: Queryable, reason: string): Promise<RebasedSource[]> {
  try {
    const { rows } = await database.query<{ source: string; generation: string; copied: string }>(
      'select r.source, r.generation::text as generation, r.copied::text as copied from turnout.rebase_relay($1) r order by r.source',
      [reason],
    );
    return rows.map(({ source, generation, copied }) => ({
      source,
      generation: Number(generation),
      copied: copied === 'true',
    }));
  } catch (error) {
    throw fromDatabaseError(error);
  }
}
