import type { Source } from '../../consumer/index.ts';
import type { Database } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { sleep } from '../../lifecycle/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import { createdXidFinished, recordSince, registerSwitchover, switchoverStart } from '../../switchover/index.ts';
import type { Since, SwitchoverDefinition } from '../../switchover/index.ts';

export interface BeginOptions {
  /** The producing source, its database, and the switchover to create in it. */
  readonly source: string;
  readonly database: Database;
  readonly definition: SwitchoverDefinition;
  /** Where the consumer reads. */
  readonly broker: Source;
  readonly reason: string;
  readonly logger: Logger;
  /** How long to wait for transactions, consumer and broker, in milliseconds. */
  readonly patienceMs: number;
}

/**
 * Creates a switchover and records where its consumer starts, in this order:
 *
 * 1. the row, so that `publish` can stamp;
 * 2. wait until every transaction that began before the row was visible is over. This makes the start a clean line: what has
 *    no stamp behind it is of code that does not declare the switchover, never of a transaction that could not know it. No
 *    effect hangs on that, since a consumer only observes what has no stamp, wherever it is: it is for whoever has to explain
 *    what the log holds, and for who looks for publishers that still call by themselves;
 * 3. the consumer's start: the offsets its group has committed, or, where it has none, the ends of the partitions, which
 *    are then committed for it;
 * 4. record them. Until this is done, no event can be routed to the consumer.
 *
 * Stopped at any point, it goes on from there when it is run again. Gives where the consumer starts.
 */
export async function beginSwitchover(options: BeginOptions): Promise<Since> {
  const { source, database, definition, reason } = options;
  await registerSwitchover(database, source, definition, reason);
  const start = await switchoverStart(database, source, definition.name);
  // Somebody else has been quicker.
  if (start?.since !== undefined) return start.since;

  await olderTransactionsOver(options);
  const since = { [definition.topic]: await startOf(options) };
  await recordSince(database, source, definition.name, since);
  return since;
}

async function olderTransactionsOver({
  source,
  database,
  definition,
  logger,
  patienceMs,
}: BeginOptions): Promise<void> {
  const deadline = Date.now() + patienceMs;
  for (let told = false; !(await createdXidFinished(database, source, definition.name)); told = true) {
    const open = await openTransactions(database);
    if (Date.now() > deadline) {
      throw new TurnoutError(
        'TURNOUT_TRANSACTIONS_OPEN',
        `Transactions older than switchover ${definition.name} are still open: ${open}.`,
        {
          details: { switchover: definition.name, open },
        },
      );
    }
    if (!told)
      logger.info('Waiting for transactions that began before the switchover.', { switchover: definition.name, open });
    await sleep(50);
  }
}

async function openTransactions(database: Database): Promise<string> {
  const { rows } = await database.query<{ open: string | null }>(
    `select string_agg(format('pid %s (%s, %s, for %s s)', a.pid, coalesce(nullif(a.application_name, ''), 'no application name'),
                              a.state, extract(epoch from clock_timestamp() - a.xact_start)::integer), '; ' order by a.xact_start) as open
       from pg_stat_activity a where a.backend_xid is not null and a.pid <> pg_backend_pid()`,
  );
  return rows[0]?.open ?? 'prepared ones (see pg_prepared_xacts)';
}

/** One offset a partition. A group that runs and has committed nothing yet is given time to do so. */
async function startOf(options: BeginOptions): Promise<bigint[]> {
  const { definition, logger, patienceMs } = options;
  const { consumer, topic } = definition;
  const deadline = Date.now() + patienceMs;
  for (let told = false; ; told = true) {
    const start = await orRetryable(() => tryStartOf(options));
    if (Array.isArray(start)) return start;
    if (Date.now() > deadline) throw start;
    if (!told) logger.info('Waiting for the consumer’s offsets.', { consumer, topic, error: start });
    await sleep(250);
  }
}

async function tryStartOf({ broker, definition: { consumer, topic } }: BeginOptions): Promise<bigint[]> {
  const [bounds, committed] = await Promise.all([broker.bounds(topic), broker.committed(consumer, topic)]);
  const partitions = [...bounds].sort((one, other) => one.partition - other.partition);
  const missing = partitions.filter((each) => !committed.has(each.partition));
  const complete =
    missing.length === 0 ||
    (await broker.commitWhileEmpty(consumer, topic, new Map(missing.map((each) => [each.partition, each.high]))));
  if (complete) return partitions.map((each) => committed.get(each.partition) ?? each.high);
  const numbers = missing.map((each) => each.partition);
  throw new TurnoutError(
    'TURNOUT_CONSUMER_UNCOMMITTED',
    `Consumer ${consumer} runs and has committed no offset for partition ${numbers.join(', ')} of ${topic}.`,
    { details: { consumer, topic, partitions: numbers } },
  );
}

/** Gives an error that time may heal instead of throwing it: a broker that has just started loads its groups first. */
async function orRetryable<Result>(attempt: () => Promise<Result>): Promise<Result | Error> {
  try {
    return await attempt();
  } catch (error) {
    // By its field: the configuration may have loaded another instance of this module.
    if (error instanceof Error && 'retryable' in error && error.retryable === true) return error;
    throw error;
  }
}
