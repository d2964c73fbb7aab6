// One process of a consumer.
//
//   wait for database and broker ─▶ positions for all partitions ─▶ join the group ──▶ ready
//        assignment ─▶ claim (epoch + 1), read positions ─▶ batches ─▶ one transaction an event ─▶ …
//   beside it, the sweep: held events that can go on
//
// Authority is the assignment row in the consumer's database: every transaction holds it shared and checks the epoch, so a
// process that lost a partition without noticing can't commit anything more, whatever the group believes.
// A database or broker that is away is waited for, with a log line. What a human has to decide ends the service: a
// position outside of the log, an unknown repeat, missing migrations or topics, and failures if the policy is to halt.
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { requireMigrations } from '../database/index.ts';
import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import { retryDelayMs, service, silentLogger, sleep } from '../lifecycle/index.ts';
import type { Logger, Service } from '../lifecycle/index.ts';
import { startPositions } from './decide.ts';
import type { ConsumerDefinition } from './define-consumer.ts';
import { sweep } from './drain.ts';
import { partitionWorker } from './partition-worker.ts';
import type { PartitionWorker } from './partition-worker.ts';
import type { Runtime } from './perform.ts';
import { claim, knownPartitions, recordStarts } from './position-store.ts';
import { handlerTable } from './read-event.ts';
import { forgetOldShadow } from './shadow-arrivals.ts';
import type { Membership, Source, TopicPartition } from './source.ts';

export interface RunConsumerOptions {
  readonly source: Source;
  /** Default: says nothing. */
  readonly logger?: Logger;
  /** How often held events are looked at, in milliseconds. Default 1,000. */
  readonly sweepEveryMs?: number;
}

const outagePolicy = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 200, maxDelayMs: 10_000 };
const defaultConcurrency = 4;

/**
 * Runs a consumer in this process; processes of one name share its partitions. `start` resolves when it is a member of its
 * group, which may take as long as database and broker are away. `failed` resolves with TURNOUT_POSITION_OUT_OF_RANGE,
 * TURNOUT_UNKNOWN_REPEAT, TURNOUT_HANDLER_FAILED and others if it has to halt; `start` rejects with TURNOUT_POOL_TOO_SMALL,
 * TURNOUT_MIGRATION_MISSING, TURNOUT_TOPIC_MISSING and others.
 * `stop` lets the event in hand come to its end, commits, and leaves the group.
 *
 * @example
 * const consumer = runConsumer(loyalty, { source: kafkaJsSource(kafka), logger: jsonLogger });
 * await consumer.start();
 * process.once('SIGTERM', () => void consumer.stop());
 */
export function runConsumer<Tx>(definition: ConsumerDefinition<Tx>, options: RunConsumerOptions): Service {
  const { source, logger = silentLogger, sweepEveryMs = 1_000 } = options;
  const { name, database } = definition;
  const table = handlerTable(definition);
  const owner = `${hostname()}/${process.pid}/${randomBytes(4).toString('hex')}`;

  return service(`consumer ${name}`, async (signal, ready) => {
    const concurrency = requireRoom(definition);
    const runtime: Runtime = { definition, table, logger, inTurn: places(concurrency) };
    const patiently = <Result>(what: string, work: () => Promise<Result>): Promise<Result | undefined> =>
      untilThere(signal, logger, { consumer: name, what }, work);

    await patiently('migrations', () => requireMigrations(database, 'consumer', { logger }));
    for (const topic of table.topics)
      await patiently(`positions of topic ${topic}`, () => requirePositions(definition, source, topic));

    const workers = new Map<string, PartitionWorker>();
    async function onAssigned(
      partitions: readonly TopicPartition[],
      over: AbortSignal,
    ): Promise<(TopicPartition & { offset: bigint })[]> {
      workers.clear();
      const claimed = await untilThere(over, logger, { consumer: name, what: 'claim' }, async () => {
        // Partitions may have been added since the start.
        for (const topic of new Set(partitions.map((place) => place.topic)))
          await requirePositions(definition, source, topic);
        return claim(database, name, owner, partitions, { logger, graceMs: definition.graceMs, signal: over });
      });
      for (const owned of claimed ?? [])
        workers.set(`${owned.topic}/${owned.partition}`, partitionWorker(runtime, owned, owner));
      return (claimed ?? []).map(({ topic, partition, next }) => ({ topic, partition, offset: next }));
    }

    const sweeping = new AbortController();
    let membership: Membership | undefined;
    let sweeper: Promise<void> = Promise.resolve();
    let forgetting: Promise<void> = Promise.resolve();
    try {
      membership = await patiently('broker', () =>
        source.join({
          group: name,
          topics: table.topics,
          logger,
          onAssigned,
          async onBatch(batch) {
            const worker = workers.get(`${batch.topic}/${batch.partition}`);
            // Of an assignment that is over.
            if (worker === undefined) return { next: batch.messages[0]!.offset, retryAfterMs: 250 };
            return worker.work(batch);
          },
        }),
      );
      if (membership === undefined) return;
      sweeper = sweep(runtime, sweepEveryMs, sweeping.signal);
      forgetting = forgetOldShadow(database, name, logger, sweeping.signal);
      ready();
      // The sweep ends by itself only if it fails.
      await Promise.race([membership.closed, sweeper, aborted(signal)]);
    } finally {
      sweeping.abort();
      await membership?.close();
      await sweeper.catch(() => undefined);
      await forgetting;
    }
  });
}

/** How many events are handled at once. Throws TURNOUT_POOL_TOO_SMALL: a pool that can't serve them would hang, not fail. */
function requireRoom({ name, database, concurrency }: ConsumerDefinition): number {
  const max = database.maxConnections;
  // One more for claims and the sweep.
  const most = max === undefined ? Number.POSITIVE_INFINITY : max - 1;
  const wanted = concurrency ?? Math.max(1, Math.min(defaultConcurrency, most));
  if (wanted <= most) return wanted;
  throw new TurnoutError(
    'TURNOUT_POOL_TOO_SMALL',
    `Consumer ${name} handles ${wanted} events at once and needs ${wanted + 1} connections; its pool has ${max}.`,
    {
      details: { consumer: name, concurrency: wanted, connections: max },
    },
  );
}

/** Makes sure that every partition of a topic has a position. */
async function requirePositions(
  { name, from, database }: ConsumerDefinition,
  source: Source,
  topic: string,
): Promise<void> {
  const [bounds, known] = [await source.bounds(topic), await knownPartitions(database, name, topic)];
  if (bounds.every(({ partition }) => known.has(partition))) return;
  const committed = known.size > 0 ? new Map<number, bigint>() : await source.committed(name, topic);
  await recordStarts(database, name, topic, startPositions({ from, bounds, known, committed }));
}

/** Repeats `work` while database or broker are away. Gives undefined once `signal` is aborted. */
async function untilThere<Result>(
  signal: AbortSignal,
  logger: Logger,
  fields: Readonly<Record<string, unknown>>,
  work: () => Promise<Result>,
): Promise<Result | undefined> {
  for (let attempt = 1; !signal.aborted; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!passing.some((code) => isTurnoutError(error, code))) throw error;
      const retryAfterMs = retryDelayMs(outagePolicy, attempt, Math.random());
      logger.warn('Waiting for what is not there yet.', { ...fields, attempt, retryAfterMs, error });
      await sleep(retryAfterMs, signal);
    }
  }
  return undefined;
}

const passing = [
  'TURNOUT_DATABASE_UNREACHABLE',
  'TURNOUT_POOL_TIMEOUT',
  'TURNOUT_COMMIT_UNKNOWN',
  'TURNOUT_BROKER_UNREACHABLE',
] as const;

/** Lets `count` pieces of work run at once; the others wait in line. */
function places(count: number): Runtime['inTurn'] {
  const line: (() => void)[] = [];
  let free = count;
  return async (work) => {
    if (free > 0) free--;
    else await new Promise<void>((resolve) => line.push(resolve));
    try {
      return await work();
    } finally {
      const next = line.shift();
      if (next === undefined) free++;
      else next();
    }
  };
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
