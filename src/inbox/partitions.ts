import type { Database } from '../database/index.ts';

const weekMs = 7 * 24 * 60 * 60 * 1000;
/** The inbox partitions that are known to be there, by database. */
const known = new WeakMap<object, Map<number, Promise<void>>>();

/** Partitions of older weeks may be dropped meanwhile: they are asked for each time. */
const rememberedMs = 2 * weekMs;

/**
 * Makes sure that the inbox has a partition for events of the time `at`; for those of the last days it asks the database once a
 * week of events. To be awaited before the transaction that applies the event is begun.
 */
export async function ensureInboxPartition<Tx>(database: Database<Tx>, at: Date): Promise<void> {
  const weeks = known.get(database) ?? new Map<number, Promise<void>>();
  known.set(database, weeks);
  // Weeks are cut on Mondays, UTC; the epoch was a Thursday.
  const week = Math.floor((at.getTime() - 4 * 24 * 60 * 60 * 1000) / weekMs);
  let made = weeks.get(week);
  if (made === undefined) {
    made = database.query('select turnout.make_inbox_partition($1)', [at.toISOString()]).then(() => undefined);
    if (at.getTime() > Date.now() - rememberedMs) weeks.set(week, made);
    // A failure is not remembered.
    made.catch(() => weeks.delete(week));
  }
  await made;
}
