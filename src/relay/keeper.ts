import type { Database } from '../database/index.ts';
import { jsonLogger, service, sleep } from '../lifecycle/index.ts';
import type { Logger, Service } from '../lifecycle/index.ts';

export interface OutboxKeeperOptions {
  /** The producer's database; the keeper's statements are short and take any connection. */
  readonly database: Database;
  /** How long published events stay in the outbox, in milliseconds; default 7 days. Longer than the longest outage of a consumer. */
  readonly retentionMs?: number;
  /** For how long an id of a publisher's choice is published only once, in milliseconds; default 30 days. Longer than clients retry. */
  readonly idRetentionMs?: number;
  /** How often it looks, in milliseconds; default 30,000. */
  readonly everyMs?: number;
  readonly logger?: Logger;
}

/** Rows of the outbox that must fit before the keeper says that it can't keep up: a full outbox refuses every event. */
const fewRowsLeft = 1_000_000n;
const tickRetention = '1 day';
const dayMs = 24 * 3_600_000;
const deletedAtOnce = 5_000;
const dropEveryMs = 3_600_000;

/**
 * Keeps the outbox in shape: makes partitions ahead, empties those that are older than `retentionMs`, deletes old ticks, stamps,
 * replies and published ids in small batches. Every process may run one; what one is doing, the others leave alone.
 * A partition is emptied only if all of it is published, and no call is owed for one of its events.
 *
 * @example
 * const keeper = outboxKeeper({ database, retentionMs: 3 * 24 * 3_600_000 });
 */
export function outboxKeeper(options: OutboxKeeperOptions): Service {
  const {
    database,
    retentionMs = 7 * dayMs,
    idRetentionMs = 30 * dayMs,
    everyMs = 30_000,
    logger = jsonLogger,
  } = options;

  return service('outbox keeper', async (signal, ready) => {
    // Empty partitions whose stamps are gone too: looking for those at every round would be a scan each time.
    const swept = new Set<string>();
    let lastDrop = Number.NEGATIVE_INFINITY;
    for (;;) {
      try {
        await makePartitions(database, logger);
        ready();
        if (signal.aborted) return;
        await emptyPartitions(database, retentionMs, swept, logger, signal);
        await inBatches(
          database,
          'select turnout.delete_old_ticks($1::interval, $2::integer)::text as n',
          [tickRetention],
          signal,
        );
        await inBatches(
          database,
          "select turnout.delete_old_replies($1::double precision * interval '1 millisecond', $2::integer)::text as n",
          [retentionMs],
          signal,
        );
        await inBatches(
          database,
          "select turnout.delete_old_published_ids($1::double precision * interval '1 millisecond', $2::integer)::text as n",
          [idRetentionMs],
          signal,
        );
        if (swept.size > 0 && performance.now() - lastDrop >= dropEveryMs) {
          lastDrop = performance.now();
          await database.query('select turnout.drop_empty_outbox_partitions()::text');
        }
      } catch (error) {
        logger.warn('The outbox could not be kept; it is tried again.', { error, waitMs: everyMs });
      }
      if (!(await sleep(everyMs, signal))) return;
    }
  });
}

async function makePartitions(database: Database, logger: Logger): Promise<void> {
  const { rows } = await database.query<{ left: string }>('select turnout.make_outbox_partitions()::text as left');
  const left = BigInt(rows[0]?.left ?? 0);
  if (left < fewRowsLeft)
    logger.error('The outbox has few rows left before it is full, and publishing fails then.', { rowsLeft: left });
}

async function emptyPartitions(
  database: Database,
  retentionMs: number,
  swept: Set<string>,
  logger: Logger,
  signal: AbortSignal,
): Promise<void> {
  const { rows } = await database.query<{ name: string; lower: string; upper: string }>(
    'select p.name, p.lower_seq::text as lower, p.upper_seq::text as upper from turnout.closed_outbox_partitions() p',
  );
  for (const { name, lower, upper } of rows) {
    if (signal.aborted) return;
    const outcome = await emptyPartition(database, name, retentionMs);
    // Partitions come in order: the ones after a young one are younger. Waiting for a lock holds up whoever comes after,
    // so a round does it once.
    if (outcome === 'young' || outcome === 'busy') return;
    const partition = { partition: name };
    if (outcome === 'emptied') logger.info('A partition of the outbox was emptied.', partition);
    if (outcome === 'owed')
      logger.warn(
        'A partition of the outbox is older than retention and calls are still owed for its events.',
        partition,
      );
    if (outcome === 'unpublished')
      logger.warn('A partition of the outbox is older than retention and not published.', partition);
    if (outcome !== 'emptied' && (outcome !== 'empty' || swept.has(name))) continue;
    const deleteStamps = 'select turnout.delete_old_stamps($1::bigint, $2::bigint, $3::integer)::text as n';
    if (await inBatches(database, deleteStamps, [lower, upper], signal)) swept.add(name);
  }
}

async function emptyPartition(database: Database, name: string, retentionMs: number): Promise<string> {
  const { rows } = await database.query<{ outcome: string }>(
    `select turnout.empty_outbox_partition($1, $2::double precision * interval '1 millisecond') as outcome`,
    [name, retentionMs],
  );
  return rows[0]?.outcome ?? '';
}

/** Until a batch is not full: unbounded deletes bloat and lock what everybody else needs. Gives false if it was stopped. */
async function inBatches(
  database: Database,
  statement: string,
  values: unknown[],
  signal: AbortSignal,
): Promise<boolean> {
  while (!signal.aborted) {
    const { rows } = await database.query<{ n: string }>(statement, [...values, deletedAtOnce]);
    if (Number(rows[0]?.n ?? 0) < deletedAtOnce) return true;
  }
  return false;
}
