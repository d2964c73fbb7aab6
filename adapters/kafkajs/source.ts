import type { Admin, Consumer, EachBatchPayload, Kafka, KafkaMessage } from 'kafkajs';
import type {
  Batch,
  Membership,
  PartitionBounds,
  Source,
  SourceMessage,
  Subscription,
  TopicPartition,
} from '../../src/consumer/index.ts';
import { TurnoutError, isTurnoutError } from '../../src/errors/index.ts';
import { retryDelayMs, silentLogger, sleep } from '../../src/lifecycle/index.ts';
import type { Logger } from '../../src/lifecycle/index.ts';
import { codeOf } from './kafka-errors.ts';

/** The methods used of a `Kafka` of kafkajs. */
export type KafkaSourceLike = Pick<Kafka, 'admin' | 'consumer'>;

export interface KafkaJsSourceOptions {
  /** After how long without a sign of life the group gives a member's partitions to others. Default 30,000 ms. */
  readonly sessionTimeoutMs?: number;
  /** How long a rebalance waits for members with a batch in hand. Default 60,000 ms. */
  readonly rebalanceTimeoutMs?: number;
  /** Most bytes fetched of one partition at once; larger messages come all the same. Default 262,144. */
  readonly maxBytesPerPartition?: number;
  /** How often topics are looked at for partitions that were added. Default 300,000 ms. */
  readonly metadataMaxAgeMs?: number;
}

/** How long a fetch waits for messages; also how long a seek may take to be noticed. */
const maxWaitMs = 300;
const backToBroker = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 500, maxDelayMs: 15_000 };

/**
 * Reads topics through kafkajs.
 *
 * @example
 * const source = kafkaJsSource(new Kafka({ brokers: ['localhost:9092'] }));
 * const consumer = runConsumer(mailer, { source });
 */
export function kafkaJsSource(kafka: KafkaSourceLike, options: KafkaJsSourceOptions = {}): Source {
  async function bounds(topic: string): Promise<PartitionBounds[]> {
    return withAdmin(kafka, async (admin) => {
      await requireTopic(admin, topic);
      const offsets = await admin.fetchTopicOffsets(topic);
      return offsets
        .map(({ partition, low, high }) => ({ partition, low: BigInt(low), high: BigInt(high) }))
        .sort((a, b) => a.partition - b.partition);
    });
  }

  async function committed(group: string, topic: string): Promise<Map<number, bigint>> {
    return withAdmin(kafka, async (admin) => {
      await requireTopic(admin, topic);
      const topics = await admin.fetchOffsets({ groupId: group, topics: [topic] });
      const partitions = topics.flatMap((each) => each.partitions);
      // -1: none. -2: what kafkajs commits when it resets a position that is out of range.
      return new Map(
        partitions
          .filter(({ offset }) => !offset.startsWith('-'))
          .map(({ partition, offset }) => [partition, BigInt(offset)]),
      );
    });
  }

  return {
    bounds,
    committed,
    async running(group) {
      return !(await isEmpty(kafka, group));
    },
    async commitWhileEmpty(group, topic, offsets) {
      await withAdmin(kafka, (admin) => requireTopic(admin, topic));
      return commitAsOnlyMember(kafka, group, topic, offsets);
    },
    async join(subscription) {
      for (const topic of subscription.topics) await bounds(topic);
      return startMembership(kafka, options, subscription, bounds);
    },
  };
}

// ── Membership: sessions with the broker, one after the other ─────────────────────────────────────────────────────────

/** How one kafkajs consumer ended: asked to, by an error of the caller's, or by one of the broker's. */
type SessionEnd =
  | { readonly kind: 'closed' }
  | { readonly kind: 'failed'; readonly error: unknown }
  | { readonly kind: 'crashed'; readonly error: unknown };

async function startMembership(
  kafka: KafkaSourceLike,
  options: KafkaJsSourceOptions,
  subscription: Subscription,
  bounds: (topic: string) => Promise<PartitionBounds[]>,
): Promise<Membership> {
  const logger = subscription.logger ?? silentLogger;
  const closing = new AbortController();
  const open = (): Promise<Session> => openSession(kafka, options, subscription, bounds, logger, closing.signal);
  let session = await open();

  // kafkajs restarts after some errors and not after others; here every crash is a new session, so that there is one rule.
  async function supervise(): Promise<void> {
    for (;;) {
      const end = await session.ended;
      await session.close();
      if (end.kind === 'failed') throw end.error;
      if (end.kind === 'closed' || closing.signal.aborted) return;
      let reason = end.error;
      for (let attempt = 1; ; attempt++) {
        const delayMs = retryDelayMs(backToBroker, attempt, Math.random());
        logger.warn('The broker was lost; joining the group again.', {
          group: subscription.group,
          attempt,
          delayMs,
          error: reason,
        });
        if (!(await sleep(delayMs, closing.signal))) return;
        try {
          session = await open();
          break;
        } catch (error) {
          if (!isTurnoutError(error, 'TURNOUT_BROKER_UNREACHABLE')) throw error;
          reason = error;
        }
      }
      if (closing.signal.aborted) return session.close();
      logger.info('The broker is back; the group was joined again.', { group: subscription.group });
    }
  }

  const closed = supervise();
  // Whoever doesn't look at `closed` must not be ended by an unhandled rejection.
  closed.catch(() => undefined);
  return {
    closed,
    async close() {
      closing.abort();
      await session.close();
      await closed.catch(() => undefined);
    },
  };
}

interface Session {
  readonly ended: Promise<SessionEnd>;
  /** Resolves when batches in hand have returned and the group was left; never rejects. */
  close(): Promise<void>;
}

// ── Session: one kafkajs consumer ────────────────────────────────────────────────────────────────────────────────────

/** A partition of the current assignment. */
interface Reader extends TopicPartition {
  /** The position: what the caller wants next. */
  next: bigint;
  /** Where the next fetch of kafkajs has to start: `next`, or beyond it, past records that are never shown. */
  fetchFrom: bigint;
  /** Where a fetch started that should have started at `fetchFrom`. */
  strayedTo: bigint | undefined;
}

interface Assignment {
  readonly revoke: AbortController;
  /** Aborted when the assignment is over, or the session is. */
  readonly over: AbortSignal;
  /** Resolves when the caller has given the positions and kafkajs was told to go there; with undefined when it is over before that. */
  readonly readers: Promise<ReadonlyMap<string, Reader> | undefined>;
}

/**
 * kafkajs emits GROUP_JOIN and fetches on without waiting, from the offsets that the group has committed, and it silently
 * resets an offset that is out of range. So a batch counts only if its fetch started exactly where it had to: every other
 * one is dropped unresolved after a seek, and if the seek didn't help, the bounds of the partition decide.
 */
async function openSession(
  kafka: KafkaSourceLike,
  options: KafkaJsSourceOptions,
  subscription: Subscription,
  bounds: (topic: string) => Promise<PartitionBounds[]>,
  logger: Logger,
  closing: AbortSignal,
): Promise<Session> {
  const { group, topics } = subscription;
  const {
    sessionTimeoutMs = 30_000,
    rebalanceTimeoutMs = 60_000,
    maxBytesPerPartition = 262_144,
    metadataMaxAgeMs = 300_000,
  } = options;
  const consumer = kafka.consumer({
    groupId: group,
    sessionTimeout: sessionTimeoutMs,
    rebalanceTimeout: rebalanceTimeoutMs,
    heartbeatInterval: Math.min(3_000, Math.floor(sessionTimeoutMs / 3)),
    maxBytesPerPartition,
    maxWaitTimeInMs: maxWaitMs,
    metadataMaxAge: metadataMaxAgeMs,
    allowAutoTopicCreation: false,
    retry: { retries: 4, initialRetryTime: 200, maxRetryTime: 5_000, restartOnFailure: async () => false },
  });

  let markEnded: (end: SessionEnd) => void = () => undefined;
  const ended = new Promise<SessionEnd>((resolve) => {
    markEnded = resolve;
  });
  const stopping = new AbortController();
  const batchesInHand = new Map<string, Promise<void>>();
  const pausedUntil = new Map<string, NodeJS.Timeout>();
  const commits = commitQueue(consumer);
  let current: Assignment | undefined;
  let previousReady: Promise<unknown> = Promise.resolve();
  let markRunning: () => void = () => undefined;
  const running = new Promise<void>((resolve) => {
    markRunning = resolve;
  });
  let joined = false;

  function fail(error: unknown): void {
    stopping.abort();
    current?.revoke.abort();
    markEnded({ kind: 'failed', error });
  }

  function onGroupJoin(memberAssignment: Record<string, number[]>): void {
    joined = true;
    current?.revoke.abort();
    commits.forget();
    for (const timer of pausedUntil.values()) clearTimeout(timer);
    pausedUntil.clear();
    consumer.resume(topics.map((topic) => ({ topic })));
    const partitions = Object.entries(memberAssignment).flatMap(([topic, numbers]) =>
      numbers.map((partition) => ({ topic, partition })),
    );
    const revoke = new AbortController();
    const over = AbortSignal.any([revoke.signal, stopping.signal]);
    const ready = previousReady.then(() => position(partitions, over));
    previousReady = ready.catch(() => undefined);
    ready.catch(fail);
    current = { revoke, over, readers: Promise.race([ready.catch(() => undefined), aborted(over)]) };
  }

  /** Asks the caller where to read, checks that it is there, and tells kafkajs and the group. */
  async function position(
    partitions: readonly TopicPartition[],
    over: AbortSignal,
  ): Promise<ReadonlyMap<string, Reader>> {
    const readers = new Map<string, Reader>();
    if (partitions.length === 0 || over.aborted) return readers;
    const offsets = await subscription.onAssigned(partitions, over);
    const limits = await untilReachable(over, logger, async () => {
      const byTopic = new Map<string, PartitionBounds[]>();
      for (const topic of new Set(offsets.map((each) => each.topic))) byTopic.set(topic, await bounds(topic));
      return byTopic;
    });
    if (limits === undefined || over.aborted) return readers;
    for (const { topic, partition, offset } of offsets) {
      requireInRange({ topic, partition }, offset, limits.get(topic));
      readers.set(nameOf({ topic, partition }), {
        topic,
        partition,
        next: offset,
        fetchFrom: offset,
        strayedTo: undefined,
      });
    }
    await running;
    if (over.aborted) return readers;
    for (const reader of readers.values()) {
      seek(reader);
      commits.note(reader, reader.next);
    }
    return readers;
  }

  function seek(reader: Reader): void {
    try {
      consumer.seek({ topic: reader.topic, partition: reader.partition, offset: reader.next.toString() });
    } catch {
      // kafkajs has stopped after a crash; the next session asks for positions anew.
    }
    reader.fetchFrom = reader.next;
  }

  /** Whether a batch starts where it has to. If not, kafkajs is sent there. Throws TURNOUT_POSITION_OUT_OF_RANGE. */
  async function startsRight(reader: Reader, fetchedOffset: bigint): Promise<boolean> {
    if (fetchedOffset === reader.fetchFrom) {
      reader.strayedTo = undefined;
      return true;
    }
    const strayedAgain = reader.strayedTo === fetchedOffset;
    reader.strayedTo = fetchedOffset;
    if (strayedAgain) {
      const limits = await bounds(reader.topic);
      requireInRange(reader, reader.next, limits);
      // The log still holds everything from the position on, and yet reading goes on behind it: what lies between is never
      // shown (compacted, or of aborted transactions), and kafkajs has passed over it.
      if (fetchedOffset > reader.next) return true;
    }
    seek(reader);
    return false;
  }

  async function eachBatch(payload: EachBatchPayload): Promise<void> {
    const { batch } = payload;
    const name = nameOf(batch);
    // With several brokers a partition can change its leader while a batch of it is in hand: one after the other.
    const before = batchesInHand.get(name) ?? Promise.resolve();
    const work = before
      .then(() => handleBatch(payload))
      .catch((error: unknown) => {
        if (isTurnoutError(error, 'TURNOUT_BROKER_UNREACHABLE'))
          logger.warn('The broker did not answer; the batch is read again.', { group, error });
        else fail(error);
      });
    batchesInHand.set(name, work);
    await work;
    if (batchesInHand.get(name) === work) batchesInHand.delete(name);
  }

  async function handleBatch(payload: EachBatchPayload): Promise<void> {
    const { batch } = payload;
    const assignment = current;
    if (assignment === undefined) return;
    const { over } = assignment;
    const beat = async (): Promise<void> => {
      try {
        await payload.heartbeat();
      } catch (error) {
        // The partitions have to be given up: whoever works on them should come to an end. kafkajs joins again by itself.
        if (isRebalance(error)) assignment.revoke.abort();
      }
    };
    const timer = setInterval(() => void beat(), 1_000);
    try {
      const reader = (await assignment.readers)?.get(nameOf(batch));
      if (reader === undefined || over.aborted || assignment !== current || !payload.isRunning() || payload.isStale())
        return;
      if (!(await startsRight(reader, fetchedOffsetOf(batch)))) return;
      const messages = batch.messages.map(toSourceMessage).filter((message) => message.offset >= reader.next);
      const last = messages.at(-1)?.offset;
      if (last === undefined) {
        payload.resolveOffset(batch.lastOffset());
        reader.fetchFrom = BigInt(batch.lastOffset()) + 1n;
        return;
      }
      const asked: Batch = { topic: batch.topic, partition: batch.partition, messages, signal: over, heartbeat: beat };
      const { next, retryAfterMs } = await subscription.onBatch(asked);
      if (assignment !== current) return;
      if (next === last + 1n) {
        // kafkajs goes on behind records at the end of the batch that it doesn't show.
        payload.resolveOffset(last.toString());
        reader.fetchFrom = BigInt(batch.lastOffset()) + 1n;
        reader.next = next;
      } else {
        reader.next = next;
        seek(reader);
      }
      commits.note(reader, next);
      if (retryAfterMs !== undefined) pauseFor(reader, retryAfterMs);
    } finally {
      clearInterval(timer);
    }
  }

  function pauseFor({ topic, partition }: TopicPartition, ms: number): void {
    const name = nameOf({ topic, partition });
    const resume = (): void => {
      pausedUntil.delete(name);
      try {
        consumer.resume([{ topic, partitions: [partition] }]);
      } catch {
        // kafkajs has stopped after a crash; nothing is paused in the next session.
      }
    };
    consumer.pause([{ topic, partitions: [partition] }]);
    clearTimeout(pausedUntil.get(name));
    pausedUntil.set(name, setTimeout(resume, ms));
  }

  let closed: Promise<void> | undefined;
  function close(): Promise<void> {
    closed ??= (async () => {
      stopping.abort();
      markRunning();
      for (const timer of pausedUntil.values()) clearTimeout(timer);
      pausedUntil.clear();
      await previousReady;
      await Promise.all(batchesInHand.values());
      await commits.flush();
      await consumer.disconnect().catch((error: unknown) => logger.warn('Leaving the group failed.', { group, error }));
      markEnded({ kind: 'closed' });
    })();
    return closed;
  }

  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    try {
      onGroupJoin(payload.memberAssignment);
    } catch (error) {
      fail(error);
    }
  });
  const crash = new Promise<never>((_resolve, reject) => {
    consumer.on(consumer.events.CRASH, ({ payload }) => {
      stopping.abort();
      markEnded({ kind: 'crashed', error: payload.error });
      reject(brokerError(payload.error));
    });
  });
  crash.catch(() => undefined);

  try {
    const start = async (): Promise<void> => {
      await consumer.connect();
      await consumer.subscribe({ topics: [...topics], fromBeginning: true });
      // It resolves also when joining failed; then CRASH has been emitted, or is about to be.
      await consumer.run({
        autoCommit: false,
        eachBatchAutoResolve: false,
        partitionsConsumedConcurrently: 64,
        eachBatch,
      });
      if (!joined) await crash;
    };
    await Promise.race([start(), crash, aborted(closing).then(() => undefined)]);
    markRunning();
    return { ended, close };
  } catch (error) {
    await close();
    throw brokerError(error);
  }
}

/** Commits the newest position of each partition, one request at a time; failures are of no consequence, the positions are the caller's. */
function commitQueue(consumer: Consumer): {
  note(place: TopicPartition, offset: bigint): void;
  forget(): void;
  flush(): Promise<void>;
} {
  let waiting = new Map<string, TopicPartition & { offset: string }>();
  let sending: Promise<void> | undefined;

  async function send(): Promise<void> {
    while (waiting.size > 0) {
      const batch = [...waiting.values()];
      waiting = new Map();
      await consumer.commitOffsets(batch).catch(() => undefined);
    }
    sending = undefined;
  }

  return {
    note({ topic, partition }, offset) {
      waiting.set(nameOf({ topic, partition }), { topic, partition, offset: offset.toString() });
      sending ??= send();
    },
    forget() {
      waiting.clear();
    },
    async flush() {
      await sending;
    },
  };
}

// ── Offsets of a group without members ───────────────────────────────────────────────────────────────────────────────

/**
 * kafkajs can't commit for a group from outside: one has to be its member. So the group is joined for a moment, and nothing is
 * committed unless all partitions of the topic were assigned, which means that there is no other member.
 */
async function commitAsOnlyMember(
  kafka: KafkaSourceLike,
  group: string,
  topic: string,
  offsets: ReadonlyMap<number, bigint>,
): Promise<boolean> {
  if (!(await isEmpty(kafka, group))) return false;
  const partitions = (await withAdmin(kafka, (admin) => admin.fetchTopicOffsets(topic))).length;
  const consumer = kafka.consumer({
    groupId: group,
    allowAutoTopicCreation: false,
    maxWaitTimeInMs: 50,
    retry: { retries: 3, restartOnFailure: async () => false },
  });
  try {
    let assigned: number | undefined;
    consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
      const share = payload.memberAssignment;
      assigned = share[topic]?.length ?? 0;
    });
    const crash = new Promise<never>((_resolve, reject) =>
      consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error)),
    );
    crash.catch(() => undefined);
    await consumer.connect();
    await consumer.subscribe({ topic, fromBeginning: true });
    await consumer.run({ autoCommit: false, eachBatchAutoResolve: false, eachBatch: async () => undefined });
    if (assigned === undefined) await crash;
    if (assigned !== partitions) return false;
    await consumer.commitOffsets(
      [...offsets].map(([partition, offset]) => ({ topic, partition, offset: offset.toString() })),
    );
    return true;
  } catch (error) {
    throw brokerError(error);
  } finally {
    await consumer.disconnect().catch(() => undefined);
  }
}

/** Whether a group has no member. One that is being rebalanced has some. */
async function isEmpty(kafka: KafkaSourceLike, group: string): Promise<boolean> {
  return withAdmin(kafka, async (admin) => {
    const { groups } = await admin.describeGroups([group]);
    return groups.every(({ state }) => state === 'Empty' || state === 'Dead' || state === 'Unknown');
  });
}

// ── Small parts ──────────────────────────────────────────────────────────────────────────────────────────────────────

async function withAdmin<Result>(kafka: KafkaSourceLike, work: (admin: Admin) => Promise<Result>): Promise<Result> {
  const admin = kafka.admin({ retry: { retries: 4, initialRetryTime: 200, maxRetryTime: 2_000 } });
  try {
    await admin.connect();
    return await work(admin);
  } catch (error) {
    throw brokerError(error);
  } finally {
    await admin.disconnect().catch(() => undefined);
  }
}

async function requireTopic(admin: Admin, topic: string): Promise<void> {
  // Asking for the topic itself would be retried for seconds before kafkajs says that there is none.
  if ((await admin.listTopics()).includes(topic)) return;
  throw new TurnoutError('TURNOUT_TOPIC_MISSING', `Topic ${topic} does not exist.`, { details: { topic } });
}

/** Repeats `work` while the broker can't be reached. Gives undefined once `signal` is aborted. */
async function untilReachable<Result>(
  signal: AbortSignal,
  logger: Logger,
  work: () => Promise<Result>,
): Promise<Result | undefined> {
  for (let attempt = 1; !signal.aborted; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!isTurnoutError(error, 'TURNOUT_BROKER_UNREACHABLE')) throw error;
      logger.warn('The broker does not answer; trying again.', { attempt, error });
      await sleep(retryDelayMs(backToBroker, attempt, Math.random()), signal);
    }
  }
  return undefined;
}

function requireInRange(
  { topic, partition }: TopicPartition,
  position: bigint,
  limits: readonly PartitionBounds[] | undefined,
): void {
  const limit = limits?.find((each) => each.partition === partition);
  if (limit !== undefined && position >= limit.low && position <= limit.high) return;
  const [low, high] = [limit?.low, limit?.high];
  throw new TurnoutError(
    'TURNOUT_POSITION_OUT_OF_RANGE',
    `Position ${position} of partition ${partition} of topic ${topic} is outside of what it holds (${low} to ${high}).`,
    { details: { topic, partition, position, low, high } },
  );
}

function brokerError(error: unknown): TurnoutError {
  if (error instanceof TurnoutError) return error;
  if (codeOf(error) === 'TURNOUT_TOPIC_MISSING') {
    return new TurnoutError('TURNOUT_TOPIC_MISSING', 'A topic of the subscription does not exist.', { cause: error });
  }
  const reason = error instanceof Error ? error.message : String(error);
  return new TurnoutError('TURNOUT_BROKER_UNREACHABLE', `The broker did not answer as it should: ${reason}.`, {
    cause: error,
  });
}

function isRebalance(error: unknown): boolean {
  const { type } = error as { type?: unknown };
  return type === 'REBALANCE_IN_PROGRESS' || type === 'ILLEGAL_GENERATION' || type === 'UNKNOWN_MEMBER_ID';
}

/** Where the fetch of a batch started. kafkajs keeps it (2.x) and leaves it out of its types. */
function fetchedOffsetOf(batch: EachBatchPayload['batch']): bigint {
  const { fetchedOffset } = batch as typeof batch & { fetchedOffset?: string };
  if (fetchedOffset === undefined)
    throw new Error('This version of kafkajs does not say where a batch was fetched from; use kafkajs 2.');
  return BigInt(fetchedOffset);
}

function toSourceMessage({ offset, key, value, headers = {} }: KafkaMessage): SourceMessage {
  const decoded: Record<string, string> = {};
  for (const name in headers) {
    // A header that came several times: its last value counts.
    const given = headers[name];
    const header = Array.isArray(given) ? given.at(-1) : given;
    if (header !== undefined) decoded[name] = header.toString();
  }
  return { offset: BigInt(offset), key: key?.toString() ?? null, value, headers: decoded };
}

function nameOf({ topic, partition }: TopicPartition): string {
  return `${topic}/${partition}`;
}

function aborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined);
    else signal.addEventListener('abort', () => resolve(undefined), { once: true });
  });
}
