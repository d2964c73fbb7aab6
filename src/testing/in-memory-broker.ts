import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Source, SourceMessage } from '../consumer/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Message } from '../event/index.ts';
import type { PartitionBatch, Publisher, TopicAdmin } from '../relay/index.ts';
import { createGroups, inMemorySource } from './in-memory-source.ts';
import { append, brokerState, highOf, partitionsOf, requireReachable } from './partition-log.ts';

/** A broker within the process. It passes the suites that the kafkajs adapters pass, and can be told to fail. */
export interface InMemoryBroker {
  publisher(): Publisher;
  source(): Source;
  topics(): TopicAdmin;
  /** The messages of a topic that it still holds, by partition and offset. */
  messages(topic: string): (SourceMessage & { readonly partition: number })[];
  /**
   * The next `count` sends fail with TURNOUT_PUBLISH_FAILED. `written`: their messages are written all the same, as when
   * only the acknowledgement was lost.
   */
  failSends(count: number, options?: { written?: boolean }): void;
  /** Nothing can be sent, read or asked (TURNOUT_BROKER_UNREACHABLE) until the function it gives is called. */
  becomeUnreachable(): () => void;
  /** Forgets the messages of a partition below `offset`, as retention does. */
  deleteBelow(topic: string, partition: number, offset: bigint): void;
  /** Adds partitions to a topic; its groups are dealt the new ones too. */
  addPartitions(topic: string, partitions: number): void;
}

export interface InMemoryBrokerOptions {
  /** Largest message in bytes: key, value and headers. Default 1,048,588, as Apache Kafka's. */
  readonly maxMessageBytes?: number;
  /** Most messages handed out in one batch. Default 500. */
  readonly batchSize?: number;
  /** How long a rebalance waits for members with a batch in hand before it goes on without them. Default 60,000 ms. */
  readonly rebalanceTimeoutMs?: number;
}

/**
 * Makes a broker of its own: several are isolated from each other. Nothing of it outlives the process.
 *
 * @example
 * const broker = inMemoryBroker();
 * await broker.topics().create([{ name: 'orders', partitions: 3 }]);
 * const consumer = runConsumer(mailer, { source: broker.source() });
 */
export function inMemoryBroker(options: InMemoryBrokerOptions = {}): InMemoryBroker {
  const { maxMessageBytes = 1_048_588, batchSize = 500, rebalanceTimeoutMs = 60_000 } = options;
  const state = brokerState();
  const groups = createGroups(state, rebalanceTimeoutMs);
  const failing = { count: 0, written: false };

  function write({ topic, partition, messages }: PartitionBatch): void {
    const log = state.topics.get(topic)?.[partition];
    if (log === undefined) {
      throw new TurnoutError('TURNOUT_PUBLISH_FAILED', `Topic ${topic} has no partition ${partition}.`, {
        details: { topic, partition },
      });
    }
    if (messages.some((message) => sizeOf(message) > maxMessageBytes)) {
      throw new TurnoutError(
        'TURNOUT_PAYLOAD_TOO_LARGE',
        `A message for topic ${topic} has more than ${maxMessageBytes} bytes.`,
        {
          details: { topic, partition },
        },
      );
    }
    for (const message of messages) append(log, message);
  }

  function writeAll(batches: readonly PartitionBatch[]): void {
    let failure: Error | undefined;
    for (const batch of batches) {
      try {
        write(batch);
      } catch (error) {
        // Other partitions are written all the same, as by a real broker.
        failure ??= error as Error;
      }
    }
    state.announce();
    if (failure !== undefined) throw failure;
  }

  function publisher(): Publisher {
    let connected = false;
    return {
      async connect() {
        await nextTurn();
        requireReachable(state);
        connected = true;
      },
      async send(batches) {
        await nextTurn();
        if (!connected) throw new TurnoutError('TURNOUT_PUBLISH_FAILED', 'The publisher is not connected.');
        requireReachable(state);
        if (failing.count > 0) {
          failing.count--;
          if (failing.written) writeAll(batches);
          throw new TurnoutError('TURNOUT_PUBLISH_FAILED', 'The in-memory broker was told to fail this send.');
        }
        writeAll(batches);
        await nextTurn();
      },
      async partitionCounts(topics) {
        await nextTurn();
        requireReachable(state);
        const known = topics.filter((topic) => state.topics.has(topic));
        return new Map(known.map((topic) => [topic, partitionsOf(state, topic).length]));
      },
      async lastRecords(topics) {
        await nextTurn();
        requireReachable(state);
        return topics.flatMap((topic) =>
          (state.topics.get(topic) ?? []).flatMap((log, partition) => {
            const newest = new Map(log.messages.map((message) => [message.headers['ce_source'], message]));
            return [...newest.values()].map((message) => ({ topic, partition, message }));
          }),
        );
      },
      async disconnect() {
        connected = false;
        await nextTurn();
      },
    };
  }

  function topics(): TopicAdmin {
    return {
      async describe(names) {
        await nextTurn();
        requireReachable(state);
        return names.flatMap((name) => {
          const partitions = state.topics.get(name)?.length;
          return partitions === undefined ? [] : [{ name, partitions }];
        });
      },
      async create(descriptions) {
        await nextTurn();
        requireReachable(state);
        for (const { name, partitions } of descriptions) {
          if (!state.topics.has(name))
            state.topics.set(
              name,
              Array.from({ length: partitions }, () => ({ low: 0n, messages: [] })),
            );
        }
      },
      async identify() {
        await nextTurn();
        requireReachable(state);
        return { name: 'in-memory broker', version: undefined };
      },
    };
  }

  return {
    publisher,
    topics,
    source: () => inMemorySource(state, groups, batchSize),
    messages: (topic) =>
      (state.topics.get(topic) ?? []).flatMap((log, partition) =>
        log.messages.map((message) => ({ ...message, partition })),
      ),
    failSends(count, { written = false } = {}) {
      failing.count = count;
      failing.written = written;
    },
    becomeUnreachable() {
      state.reachable = false;
      state.announce();
      return () => {
        state.reachable = true;
        state.announce();
      };
    },
    deleteBelow(topic, partition, offset) {
      const log = partitionsOf(state, topic)[partition];
      if (log === undefined || offset <= log.low) return;
      const low = offset < highOf(log) ? offset : highOf(log);
      log.messages.splice(0, Number(low - log.low));
      log.low = low;
      state.announce();
    },
    addPartitions(topic, partitions) {
      const logs = partitionsOf(state, topic);
      while (logs.length < partitions) logs.push({ low: 0n, messages: [] });
      groups.rebalance();
    },
  };
}

function sizeOf({ key, value, headers }: Message): number {
  let bytes = Buffer.byteLength(key ?? '') + (value?.length ?? 0);
  for (const name in headers) bytes += Buffer.byteLength(name) + Buffer.byteLength(headers[name]!);
  return bytes;
}
