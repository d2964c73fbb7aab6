/**
 * The relay: publishes the outbox to the broker, at least once, each event with the same id, sequence and partition every time.
 *
 *            connect ──► standby ──(advisory lock)──► leading ──┐
 *               ▲           ▲                                   │ poll: what became visible between
 *               │           └──── fenced, or lock lost ◄────────┤ two snapshots, persisted as a tick
 *               └── database or broker lost: wait, with log ◄───┘ in the same statement, then published
 *
 * - Authority: whoever inserts the next tick. `turnout.relay_tick` is insert-only and its key is the fence; the advisory lock only
 *   keeps relays from working against each other. No clock decides anything but when a standby loses patience.
 * - Trust window: a relay that was paused may, when it wakes, finish sends of its last tick. Those are repeats of identical messages.
 * - After a crash the newest tick is replayed: the same rows in the same order with the same numbers, since the two snapshots were
 *   durable before the first of them was sent.
 * - After a failed send nothing more of the tick is sent; it is replayed from its last checkpoint once the broker answers.
 */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { requireMigrations } from '../database/index.ts';
import type { Database, Session } from '../database/index.ts';
import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import { failpoint, jsonLogger, retryDelayMs, service, sleep } from '../lifecycle/index.ts';
import type { Logger, RetryPolicy, Service } from '../lifecycle/index.ts';
import { createChain } from './chain.ts';
import type { Chain } from './chain.ts';
import { checkRewound, checkSequence, checkTopics, checkTransactions, loadCatalogue } from './checks.ts';
import type { Catalogue } from './checks.ts';
import { keepAlive } from './heartbeat.ts';
import type { LiveSession } from './heartbeat.ts';
import { becomeLeader } from './leadership.ts';
import { toBatches } from './messages.ts';
import { createCounter, inGenerations } from './numbers.ts';
import type { Numbers } from './numbers.ts';
import { defaultPace, waitAfterEmptyPollMs } from './pace.ts';
import type { Publisher } from './publisher.ts';
import { sendOrReplace } from './refusal.ts';
import {
  appendTick,
  beginning,
  column,
  lastSeqIn,
  openPages,
  pollTick,
  prepareSession,
  readNewestTick,
  readPage,
} from './tick-store.ts';
import type { Row, Tick } from './tick-store.ts';

/** What a relay tells while it runs. */
export type RelayEvent =
  | { readonly kind: 'standing-by' }
  /** `takeover`: another relay led before, while this one stood by. */
  | { readonly kind: 'leading'; readonly takeover: boolean }
  /** A tick is published and acknowledged. `replayed`: it had been begun before, by this relay or another. */
  | { readonly kind: 'tick'; readonly tick: bigint; readonly events: number; readonly replayed: boolean }
  /** The broker refused a message for good; its placeholder was published. */
  | { readonly kind: 'refused'; readonly id: string; readonly topic: string; readonly reason: string }
  /** `fenced`: another relay has written a tick. `failed`: the database connection was lost, or something else went wrong; the log says what. */
  | { readonly kind: 'stepped-down'; readonly why: 'fenced' | 'failed' };

/** What a relay has done since it was created. */
export interface RelayCounts {
  readonly ticks: number;
  /** Acknowledged events, repeats in replays included. */
  readonly published: number;
  readonly replayed: number;
  readonly takeovers: number;
  readonly refused: number;
}

export interface RelayOptions {
  /** The producer's database. The relay holds one connection, and a second one while it works off a backlog. */
  readonly database: Database;
  /** It belongs to the relay, which connects and disconnects it. */
  readonly publisher: Publisher;
  /** How long a standby waits for a sign of life of a leader that has work, in milliseconds; default 10,000. */
  readonly takeoverMs?: number;
  /** Rows of a page; default 2,000. A poll reads five pages at most. */
  readonly pageSize?: number;
  /** As for {@link outboxKeeper}: older records of a topic need not be in the outbox any more. Default 7 days, in milliseconds. */
  readonly retentionMs?: number;
  readonly logger?: Logger;
  /** Called when this relay takes over from another one. */
  readonly onTakeover?: () => void;
  /** Hears what happens; must not throw. */
  readonly onEvent?: (event: RelayEvent) => void;
}

/** A relay as a service, with what it has done so far. */
export interface Relay extends Service {
  counts(): RelayCounts;
}

const closeAfterIdleMs = 1_000;
const checkpointMs = 1_000;
/** Pages read by a poll: enough to be busy with while the server sorts the rest of a long tick for the cursor. */
const firstPages = 5;
const retry: RetryPolicy = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 100, maxDelayMs: 5_000 };

/**
 * The relay of a database: leads, or stands by while another one does. `start` resolves once it does either; until database and
 * broker answer it waits and says so in its log. It ends by itself (see {@link Service.failed}) only where waiting can't help:
 * TURNOUT_SEQUENCE_CACHED, TURNOUT_PARTITIONS_MISMATCH, TURNOUT_DATABASE_REWOUND, TURNOUT_MIGRATION_MISSING, TURNOUT_POOL_TOO_SMALL.
 *
 * @example
 * const relay = createRelay({ database: pgDatabase(pool), publisher: kafkaJsPublisher(kafka) });
 * await relay.start();
 */
export function createRelay(options: RelayOptions): Relay {
  const { database, publisher, logger = jsonLogger } = options;
  const name = `${hostname()}-${process.pid}-${randomBytes(3).toString('hex')}`;
  const counts = { ticks: 0, published: 0, replayed: 0, takeovers: 0, refused: 0 };

  function tell(event: RelayEvent): void {
    if (event.kind === 'tick') {
      counts.ticks++;
      counts.published += event.events;
      if (event.replayed) counts.replayed += event.events;
    }
    if (event.kind === 'refused') counts.refused++;
    if (event.kind === 'leading' && event.takeover) {
      counts.takeovers++;
      options.onTakeover?.();
    }
    options.onEvent?.(event);
  }

  const context: Context = {
    database,
    publisher,
    logger,
    name,
    tell,
    takeoverMs: options.takeoverMs ?? 10_000,
    pageSize: options.pageSize ?? 2_000,
    retentionMs: options.retentionMs ?? 7 * 24 * 3_600_000,
  };

  const running = service('relay', async (signal, ready) => {
    // Whether another relay was seen to lead: what happens between standing by and leading doesn't change that it is a takeover.
    const history = { stoodBy: false };
    let failures = 0;
    try {
      while (!signal.aborted) {
        try {
          await serve(context, history, signal, () => {
            failures = 0;
            ready();
          });
        } catch (error) {
          const known = withMissingMigrations(error);
          if (signal.aborted) {
            logger.warn('The relay was stopped while it could not go on; the next start replays its last tick.', {
              error: known,
            });
            return;
          }
          if (isFatal(known)) {
            logger.error('The relay has stopped: it can’t go on by itself.', { error: known });
            throw known;
          }
          failures++;
          const waitMs = isTurnoutError(known, 'TURNOUT_RELAY_FENCED')
            ? 0
            : retryDelayMs(retry, failures, Math.random());
          logger.warn('The relay waits and tries again.', { error: known, waitMs });
          await sleep(waitMs, signal);
        }
      }
    } finally {
      await publisher
        .disconnect()
        .catch((error: unknown) => logger.warn('Disconnecting from the broker failed.', { error }));
    }
  });
  return { ...running, counts: () => ({ ...counts }) };
}

interface Context {
  readonly database: Database;
  readonly publisher: Publisher;
  readonly logger: Logger;
  readonly name: string;
  readonly tell: (event: RelayEvent) => void;
  readonly takeoverMs: number;
  readonly pageSize: number;
  readonly retentionMs: number;
}

/** From connecting to stepping down. Resolves when `signal` is aborted; rejects when leadership, database or broker are lost. */
async function serve(
  context: Context,
  history: { stoodBy: boolean },
  signal: AbortSignal,
  ready: () => void,
): Promise<void> {
  const { database, publisher, logger, tell } = context;
  requireTwoConnections(database);
  await requireMigrations(database, 'producer', { logger });
  const live = keepAlive(await database.connect(), database, context.takeoverMs);
  const { session } = live;
  try {
    await prepareSession(session, 'turnout relay');
    await checkSequence(session);
    await publisher.connect();
    await checkTopics(publisher, (await loadCatalogue(session)).partitions, logger);

    const led = await becomeLeader(session, {
      takeoverMs: context.takeoverMs,
      signal,
      standingBy: () => {
        logger.info('The relay stands by: another one leads.');
        tell({ kind: 'standing-by' });
        history.stoodBy = true;
        ready();
      },
      ending: (holder, tick) =>
        logger.warn('The leading relay has work and gives no sign of life: its database connection is ended.', {
          holder,
          tick,
          takeoverMs: context.takeoverMs,
        }),
      mayNotEnd: (error) =>
        logger.error(
          'The leading relay gives no sign of life that this one may see, and its connection may not be ended: run both as one database role, or grant pg_signal_backend and pg_read_all_stats.',
          { error },
        ),
    });
    if (!led) return;
    let leading = false;
    try {
      await lead(context, live, signal, () => {
        leading = true;
        logger.info(history.stoodBy ? 'The relay has taken over.' : 'The relay leads.', { relay: context.name });
        tell({ kind: 'leading', takeover: history.stoodBy });
        history.stoodBy = false;
        ready();
      });
    } catch (error) {
      if (leading)
        tell({ kind: 'stepped-down', why: isTurnoutError(error, 'TURNOUT_RELAY_FENCED') ? 'fenced' : 'failed' });
      throw error;
    }
  } finally {
    live.stop();
    // Settings and lock go with the connection.
    session.release(true);
  }
}

/** The leader's state between ticks. */
interface Position {
  /** Everything visible in this snapshot is published. */
  lo: string;
  /** The newest tick, which the next insert must find to be the newest still. */
  known: bigint;
  /** Counts up to here. */
  numbers: Numbers;
  /** Whether the newest tick is one that a restart would repeat. */
  open: boolean;
  lastSeq: bigint;
}

async function lead(context: Context, live: LiveSession, stopping: AbortSignal, leading: () => void): Promise<void> {
  const { publisher, logger } = context;
  const { session, lost } = live;
  const ended = AbortSignal.any([stopping, lost]);

  let catalogue = await loadCatalogue(session);
  await checkTopics(publisher, catalogue.partitions, logger);
  await checkTransactions(session);
  const newest = await readNewestTick(session);
  await checkRewound(session, { publisher, catalogue, newest, retentionMs: context.retentionMs, logger });
  leading();

  const lookUp: LookUp = {
    catalogue: () => catalogue,
    async refresh() {
      catalogue = await loadCatalogue(session);
      await checkTopics(publisher, catalogue.partitions, logger);
    },
  };
  const work = { context, session, lookUp, stopping, lost };

  const position: Position = { lo: beginning, known: 0n, numbers: {}, open: false, lastSeq: 0n };
  if (newest !== undefined) {
    Object.assign(position, {
      known: newest.tick,
      lo: newest.hi,
      numbers: newest.numbers,
      open: newest.lo !== newest.hi,
    });
    if (position.open && (await publishTick(work, newest, position, undefined)) === 'stopped-midway') return;
    // Between ticks only: what was begun in a generation is replayed in it.
    position.numbers = inGenerations(position.numbers, catalogue.generations);
    if (failpoint('relay.read-above-last-id')) position.lastSeq = await lastSeqIn(session, newest.hi);
  }

  let lastWork = performance.now();
  while (!ended.aborted) {
    const { lo, known, numbers, lastSeq } = position;
    const { hi, rows } = await pollTick(session, {
      lo,
      known,
      numbers,
      relay: context.name,
      limit: firstPages * context.pageSize,
      lastSeq,
    });
    if (rows.length === 0) {
      position.lo = hi;
      const idleMs = performance.now() - lastWork;
      if (position.open && idleMs >= closeAfterIdleMs) await closeTick(context, session, position);
      await sleep(waitAfterEmptyPollMs(defaultPace, idleMs), ended);
      continue;
    }
    const tick: Tick = { tick: known + 1n, lo, hi, afterSeq: 0n, numbers, relay: context.name };
    if ((await publishTick(work, tick, position, rows)) === 'stopped-midway') return;
    lastWork = performance.now();
  }
  if (lost.aborted) {
    throw new TurnoutError('TURNOUT_DATABASE_UNREACHABLE', 'The relay has lost its database connection.');
  }
  // So that the next start has nothing to repeat.
  if (position.open) await closeTick(context, session, position);
}

/** A tick without contents: nothing before it is replayed any more, and a standby sees that nothing is to be done. */
async function closeTick(context: Context, session: Session, position: Position): Promise<void> {
  const { lo, known, numbers } = position;
  await appendTick(session, known, { lo, hi: lo, afterSeq: 0n, numbers, relay: context.name });
  position.known = known + 1n;
  position.open = false;
}

interface LookUp {
  catalogue(): Catalogue;
  refresh(): Promise<void>;
}

interface Work {
  readonly context: Context;
  readonly session: Session;
  readonly lookUp: LookUp;
  readonly stopping: AbortSignal;
  readonly lost: AbortSignal;
}

/**
 * Publishes a tick to its end and moves the position behind it. As long as the broker fails it is tried again, from its last
 * checkpoint; `firstRows`, if given, are what the poll has already read.
 */
async function publishTick(
  work: Work,
  tick: Tick,
  position: Position,
  firstRows: readonly Row[] | undefined,
): Promise<'published' | 'stopped-midway'> {
  const { context, session, stopping, lost } = work;
  const { logger, tell } = context;
  position.known = tick.tick;
  position.open = true;
  let from = tick;
  let rows = firstRows;
  let failures = 0;
  let events = 0;
  for (;;) {
    const start = from;
    let acknowledged = 0;
    try {
      const done = await publishRows(work, from, rows, (checkpoint, eventsUpToHere) => {
        from = checkpoint;
        position.known = checkpoint.tick;
        acknowledged = eventsUpToHere;
      });
      if (!done.complete) return 'stopped-midway';
      if (failpoint('relay.persist-tick-after-publish') && firstRows !== undefined)
        await appendTick(session, tick.tick - 1n, tick);
      Object.assign(position, {
        lo: tick.hi,
        numbers: done.numbers,
        lastSeq: done.lastSeq > position.lastSeq ? done.lastSeq : position.lastSeq,
      });
      tell({ kind: 'tick', tick: tick.tick, events: events + done.events, replayed: rows === undefined });
      return 'published';
    } catch (error) {
      if (!isPublishFailure(error) || stopping.aborted || lost.aborted) throw error;
      rows = undefined;
      events += acknowledged;
      failures = from === start ? failures + 1 : 1;
      const waitMs = retryDelayMs(retry, failures, Math.random());
      logger.warn('Publishing failed; nothing more of the tick is sent, and it is replayed from its last checkpoint.', {
        error,
        tick: tick.tick,
        failures,
        waitMs,
      });
      await sleep(waitMs, AbortSignal.any([stopping, lost]));
      if (stopping.aborted || lost.aborted) throw error;
      const newest = await readNewestTick(session);
      if (newest !== undefined && newest.tick !== from.tick && !failpoint('relay.persist-tick-after-publish')) {
        throw new TurnoutError('TURNOUT_RELAY_FENCED', 'Another relay has gone on while the broker failed.');
      }
    }
  }
}

/** How far a page brings a tick. */
interface PageEnd {
  readonly lastSeq: bigint;
  readonly numbers: Numbers;
  /** Events up to here, counted from where this attempt began. */
  readonly events: number;
}

async function publishRows(
  work: Work,
  from: Tick,
  firstRows: readonly Row[] | undefined,
  checkpointed: (checkpoint: Tick, events: number) => void,
): Promise<PageEnd & { readonly complete: boolean }> {
  const { context, session, lookUp, stopping, lost } = work;
  const { publisher, logger, tell, pageSize } = context;
  const counter = createCounter(from.numbers, (source) => lookUp.catalogue().generations.get(source) ?? 1);
  const chain: Chain<PageEnd> = createChain((batches) =>
    sendOrReplace(publisher, batches, ({ topic, partition, message, reason }) => {
      const id = message.headers['ce_id'] ?? '';
      logger.error(
        'The broker refuses a message for good; a placeholder takes its place, and consumers park its key.',
        { id, topic, partition, reason },
      );
      tell({ kind: 'refused', id, topic, reason });
    }),
  );
  const breakChain = (): void =>
    chain.break(new TurnoutError('TURNOUT_DATABASE_UNREACHABLE', 'The relay has lost its database connection.'));
  lost.addEventListener('abort', breakChain, { once: true });

  let newest = from;
  let lastTickAt = performance.now();
  let end: PageEnd = { lastSeq: from.afterSeq, numbers: from.numbers, events: 0 };
  let complete = true;
  /** What is acknowledged is never sent again, unless a crash comes first. */
  const checkpoint = async (): Promise<void> => {
    const done = chain.acknowledged();
    if (done === undefined || done.lastSeq <= newest.afterSeq) return;
    newest = await appendTick(session, newest.tick, {
      lo: from.lo,
      hi: from.hi,
      afterSeq: done.lastSeq,
      numbers: done.numbers,
      relay: context.name,
    });
    lastTickAt = performance.now();
    checkpointed(newest, done.events);
  };
  try {
    for await (const rows of pagesOf(work, from, firstRows ?? (await readPage(session, from, firstPages * pageSize)))) {
      if (
        rows.some(
          (row) =>
            !lookUp.catalogue().partitions.has(row[column.topic]!) ||
            !lookUp.catalogue().generations.has(row[column.source]!),
        )
      ) {
        await lookUp.refresh();
      }
      const batches = toBatches(rows, counter, (topic) => partitionsOf(lookUp.catalogue(), topic));
      end = {
        lastSeq: BigInt(rows.at(-1)![column.seq]!),
        numbers: counter.numbers(),
        events: end.events + rows.length,
      };
      await chain.push(batches, end);
      if (performance.now() - lastTickAt >= checkpointMs) await checkpoint();
      if (stopping.aborted && rows.length >= pageSize) {
        // The rest of a long tick is for the next start, which goes on from here.
        complete = false;
        break;
      }
    }
    await chain.flush();
    if (!complete) await checkpoint();
    return { ...end, complete };
  } catch (error) {
    chain.break(error);
    await chain.flush().catch(() => undefined);
    // Whatever it was: a long tick that fails now and then, or the same way each time, would otherwise never end.
    if (!lost.aborted) await checkpoint().catch(() => undefined);
    throw error;
  } finally {
    lost.removeEventListener('abort', breakChain);
  }
}

/** The first rows, which have been read, in pages; and if there may be more, the rest through a cursor on a connection of its own. */
async function* pagesOf(
  { context, lost }: Pick<Work, 'context' | 'lost'>,
  from: Tick,
  firstRows: readonly Row[],
): AsyncGenerator<readonly Row[], void> {
  const { database, pageSize } = context;
  const slices = Math.ceil(firstRows.length / pageSize);
  const first = Array.from({ length: slices }, (_, slice) => firstRows.slice(slice * pageSize, (slice + 1) * pageSize));
  if (firstRows.length < firstPages * pageSize) {
    yield* first;
    return;
  }
  const rest: Tick = { ...from, afterSeq: BigInt(firstRows.at(-1)![column.seq]!) };
  // The server sorts the rest of the tick while the first pages are sent.
  const opening = database.connect().then(async (session) => {
    const close = (): void => {
      lost.removeEventListener('abort', close);
      session.release(true);
    };
    // Where the one connection leads nowhere, so does the other.
    lost.addEventListener('abort', close);
    try {
      await prepareSession(session, 'turnout relay: backlog');
      return { close, pages: await openPages(session, rest, pageSize) };
    } catch (error) {
      close();
      throw error;
    }
  });
  opening.catch(() => undefined);
  try {
    yield* first;
    yield* (await opening).pages;
  } finally {
    await opening.then(
      ({ close }) => close(),
      () => undefined,
    );
  }
}

function partitionsOf(catalogue: Catalogue, topic: string): number {
  const partitions = catalogue.partitions.get(topic);
  if (partitions !== undefined) return partitions;
  // Not skipped and not guessed: rows of the outbox are written by turnout.publish_events, which knows registered topics only.
  throw new TurnoutError(
    'TURNOUT_CONFIG_INVALID',
    `The outbox holds an event of topic ${topic}, which turnout.topic does not know.`,
    { details: { topic } },
  );
}

/** Whether the broker failed: the tick is then replayed by the same leader. */
function isPublishFailure(error: unknown): boolean {
  return (
    isTurnoutError(error, 'TURNOUT_PUBLISH_FAILED') ||
    isTurnoutError(error, 'TURNOUT_BROKER_UNREACHABLE') ||
    isTurnoutError(error, 'TURNOUT_TOPIC_MISSING')
  );
}

/** One leads or stands by, and the other reads a backlog, or asks after the first. */
function requireTwoConnections({ maxConnections }: Database): void {
  if (maxConnections === undefined || maxConnections >= 2) return;
  throw new TurnoutError('TURNOUT_POOL_TOO_SMALL', 'The relay needs two connections and its pool has one.', {
    details: { maxConnections, needed: 2 },
  });
}

/** Whether waiting can't help. Everything else, a driver's errors included, is waited out: a relay that gives up delays every event. */
function isFatal(error: unknown): boolean {
  // A missing topic is waited for, even if the database is lost meanwhile.
  if (isPublishFailure(error)) return false;
  if (isTurnoutError(error)) return !error.retryable;
  return error instanceof TypeError || error instanceof ReferenceError || sqlStateOf(error).startsWith('42');
}

/** Schema or table missing: the one thing that a user meets first, said in a way that helps. */
function withMissingMigrations(error: unknown): unknown {
  if (!['3F000', '42P01', '42883'].includes(sqlStateOf(error))) return error;
  return new TurnoutError('TURNOUT_MIGRATION_MISSING', 'The database lacks Turnout’s tables.', { cause: error });
}

function sqlStateOf(error: unknown): string {
  const { code, driverError } = (error ?? {}) as { code?: unknown; driverError?: { code?: unknown } };
  return String(code ?? driverError?.code ?? '');
}
