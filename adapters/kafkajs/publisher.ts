import { randomUUID } from 'node:crypto';
import type {
  IHeaders,
  Kafka,
  KafkaMessage,
  Message as ProducerMessage,
  Producer,
  RecordMetadata,
  TopicMessages,
} from 'kafkajs';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Message } from '../../src/event/index.ts';
import { retryDelayMs, sleep } from '../../src/lifecycle/index.ts';
import type { LastRecord, PartitionBatch, Publisher } from '../../src/relay/index.ts';
import { asBrokerError } from './kafka-errors.ts';
import { producerSettings } from './producer-settings.ts';

/** The methods used of a `Kafka` of kafkajs. */
export type KafkaPublisherLike = Pick<Kafka, 'admin' | 'consumer' | 'producer'>;

export interface KafkaJsPublisherOptions {
  /** How long the broker may wait for its replicas before a send fails. Default 30,000 ms. */
  readonly ackTimeoutMs?: number;
  /** How long one look at the last records of the topics may take; there are two. Default 10,000 ms. */
  readonly lastRecordsTimeoutMs?: number;
}

/**
 * Publishes through kafkajs, with acks of all in-sync replicas.
 *
 * kafkajs takes back its producer's sequence numbers when a send fails, though the broker may have written the messages, and the
 * next send would then be dropped as a repeat of other messages, or refused for ever. So a producer is not used again after a
 * failure: the next send gets one with an id of its own.
 *
 * @example
 * const publisher = kafkaJsPublisher(new Kafka({ brokers: ['localhost:9092'] }));
 */
export function kafkaJsPublisher(kafka: KafkaPublisherLike, options: KafkaJsPublisherOptions = {}): Publisher {
  const { ackTimeoutMs = 30_000, lastRecordsTimeoutMs = 10_000 } = options;
  let connected = false;
  let current: Promise<Life> | undefined;

  function life(): Promise<Life> {
    current ??= open().catch((error: unknown) => {
      current = undefined;
      throw error;
    });
    return current;
  }

  async function open(): Promise<Life> {
    const producer = kafka.producer(producerSettings);
    try {
      await producer.connect();
    } catch (error) {
      await producer.disconnect().catch(() => undefined);
      throw asBrokerError(error, 'kafkajs can’t connect');
    }
    return { producer, sends: 0, spoiled: false };
  }

  async function sendAll(batches: readonly PartitionBatch[]): Promise<void> {
    const mine = await life();
    mine.sends++;
    try {
      requireAll(
        batches,
        await mine.producer.sendBatch({ acks: -1, timeout: ackTimeoutMs, topicMessages: toTopicMessages(batches) }),
      );
    } catch (error) {
      mine.spoiled = true;
      if ((await current) === mine) current = undefined;
      const only = batches.length === 1 ? batches[0] : undefined;
      throw asBrokerError(
        error,
        'kafkajs could not send',
        only === undefined ? {} : { topic: only.topic, partition: only.partition },
      );
    } finally {
      mine.sends--;
      if (mine.spoiled && mine.sends === 0) await mine.producer.disconnect().catch(() => undefined);
    }
  }

  return {
    async connect() {
      await life();
      connected = true;
    },
    async send(batches) {
      if (!connected) throw new TurnoutError('TURNOUT_PUBLISH_FAILED', 'The publisher is not connected.');
      await sendAll(batches);
    },
    partitionCounts: (topics) =>
      withAdmin(kafka, async (admin) => {
        const existing = await existingTopics(admin, topics);
        if (existing.length === 0) return new Map();
        const metadata = await admin.fetchTopicMetadata({ topics: existing });
        return new Map(metadata.topics.map(({ name, partitions }) => [name, partitions.length]));
      }),
    lastRecords: (topics) => lastRecords(kafka, topics, lastRecordsTimeoutMs),
    async disconnect() {
      connected = false;
      const opened = current;
      current = undefined;
      const mine = await opened?.catch(() => undefined);
      await mine?.producer.disconnect().catch(() => undefined);
    },
  };
}

/** A producer and what is known of it. */
interface Life {
  readonly producer: Producer;
  sends: number;
  spoiled: boolean;
}

/**
 * When one broker answers and another doesn't, kafkajs tries again with brokers that have not answered. A partition whose leader has
 * moved to one that has is left out, and the send resolves all the same. So only what was answered for counts.
 */
function requireAll(batches: readonly PartitionBatch[], answers: readonly RecordMetadata[]): void {
  const taken = new Set(
    answers.filter(({ errorCode }) => errorCode === 0).map(({ topicName, partition }) => `${topicName}/${partition}`),
  );
  const partitions = batches.map(({ topic, partition }) => `${topic}/${partition}`).filter((name) => !taken.has(name));
  if (partitions.length === 0) return;
  throw new TurnoutError('TURNOUT_PUBLISH_FAILED', `No broker has answered for ${partitions.join(', ')}.`, {
    details: { partitions },
  });
}

/** Batches as kafkajs takes them. */
function toTopicMessages(batches: readonly PartitionBatch[]): TopicMessages[] {
  const topics = new Map<string, ProducerMessage[]>();
  for (const { topic, partition, messages } of batches) {
    let all = topics.get(topic);
    if (all === undefined) topics.set(topic, (all = []));
    for (const { key, value, headers } of messages) all.push({ partition, key, value, headers });
  }
  return [...topics].map(([topic, messages]) => ({ topic, messages }));
}

const lastRecordsAttempts = 5;
/** Compaction and markers of transactions leave offsets without a record: the last record is looked for among these. */
const lookBack = 16n;

/** kafkajs reads in a group only: one that nobody else knows, commits nothing, and goes when its only member leaves. */
async function lastRecords(
  kafka: KafkaPublisherLike,
  topics: readonly string[],
  timeoutMs: number,
): Promise<LastRecord[]> {
  const wanted = await withAdmin(kafka, async (admin) => {
    const ends: End[] = [];
    for (const topic of await existingTopics(admin, topics)) {
      for (const { partition, low, high } of await admin.fetchTopicOffsets(topic)) {
        const from = BigInt(high) - lookBack;
        if (BigInt(high) > BigInt(low))
          ends.push({ topic, partition, from: from > BigInt(low) ? from : BigInt(low), high: BigInt(high) });
      }
    }
    return ends;
  });
  if (wanted.length === 0) return [];
  const found = await readEnds(kafka, wanted, timeoutMs);
  const nothingOf = (records: readonly LastRecord[]): End[] =>
    wanted.filter((end) => !records.some((each) => each.topic === end.topic && each.partition === end.partition));
  // One that is slow to answer gets a second chance; one that ends in nothing but markers of transactions would need one for ever.
  if (nothingOf(found).length > 0) found.push(...(await readEnds(kafka, nothingOf(found), timeoutMs)));
  if (found.length === 0) {
    throw new TurnoutError('TURNOUT_BROKER_UNREACHABLE', `No last record was given within ${2 * timeoutMs} ms.`);
  }
  return [...found, ...nothingOf(found).map(({ topic, partition }) => ({ topic, partition, message: undefined }))];
}

interface End {
  readonly topic: string;
  readonly partition: number;
  readonly from: bigint;
  readonly high: bigint;
}

async function readEnds(kafka: KafkaPublisherLike, wanted: readonly End[], timeoutMs: number): Promise<LastRecord[]> {
  // A broker that has just started, or whose coordinator moves, makes kafkajs give up a group that it would get a moment later.
  for (let attempt = 1; ; attempt++) {
    try {
      return await readInGroup(kafka, wanted, timeoutMs);
    } catch (error) {
      if (attempt === lastRecordsAttempts)
        throw asBrokerError(error, 'The last records can’t be read', {}, 'TURNOUT_BROKER_UNREACHABLE');
      await sleep(
        retryDelayMs({ attempts: lastRecordsAttempts, firstDelayMs: 200, maxDelayMs: 1_000 }, attempt, Math.random()),
      );
    }
  }
}

/** What was found of them in time. */
async function readInGroup(
  kafka: KafkaPublisherLike,
  wanted: readonly End[],
  timeoutMs: number,
): Promise<LastRecord[]> {
  const found = new Map<string, LastRecord>();
  const missing = new Map(wanted.map((end) => [`${end.topic}/${end.partition}`, end]));
  const consumer = kafka.consumer({
    groupId: `turnout-relay-${randomUUID()}`,
    allowAutoTopicCreation: false,
    maxWaitTimeInMs: 100,
  });
  let timer: NodeJS.Timeout | undefined;
  try {
    await consumer.connect();
    await consumer.subscribe({ topics: [...new Set(wanted.map(({ topic }) => topic))], fromBeginning: false });
    let settle: () => void = () => undefined;
    const settled = new Promise<void>((resolve, reject) => {
      settle = resolve;
      consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
      timer = setTimeout(resolve, timeoutMs);
    });
    settled.catch(() => undefined);
    await consumer.run({
      autoCommit: false,
      eachBatch: async ({ batch: { topic, partition, messages } }) => {
        const name = `${topic}/${partition}`;
        const end = missing.get(name);
        const before = messages.filter(({ offset }) => end !== undefined && BigInt(offset) < end.high);
        const last = before.at(-1);
        if (end === undefined || last === undefined) return;
        // Sources may share a topic: the newest of each.
        for (const each of before) {
          const message = toMessage(each);
          found.set(`${name}/${message.headers['ce_source'] ?? ''}`, { topic, partition, message });
        }
        if (BigInt(last.offset) === end.high - 1n) missing.delete(name);
        if (missing.size === 0) settle();
      },
    });
    for (const { topic, partition, from } of wanted) consumer.seek({ topic, partition, offset: from.toString() });
    await settled;
  } finally {
    clearTimeout(timer);
    await consumer.disconnect().catch(() => undefined);
  }
  return [...found.values()];
}

function toMessage({ key, value, headers }: Pick<KafkaMessage, 'key' | 'value' | 'headers'>): Message {
  return { key: key?.toString() ?? null, value, headers: toHeaders(headers ?? {}) };
}

function toHeaders(headers: IHeaders): Record<string, string> {
  const texts: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    const first = Array.isArray(value) ? value[0] : value;
    if (first !== undefined) texts[name] = first.toString();
  }
  return texts;
}

type Admin = ReturnType<Kafka['admin']>;

async function withAdmin<Result>(
  kafka: Pick<Kafka, 'admin'>,
  work: (admin: Admin) => Promise<Result>,
): Promise<Result> {
  const admin = kafka.admin({ retry: { retries: 2 } });
  try {
    await admin.connect();
    return await work(admin);
  } catch (error) {
    throw asBrokerError(error, 'The broker can’t be asked');
  } finally {
    await admin.disconnect().catch(() => undefined);
  }
}

async function existingTopics(admin: Admin, topics: readonly string[]): Promise<string[]> {
  // fetchTopicMetadata would fail for all when one is missing.
  const all = new Set(await admin.listTopics());
  return topics.filter((topic) => all.has(topic));
}
