import type { Message } from '../event/index.ts';

/** Messages for one partition, in the order in which they must be written. */
export interface PartitionBatch {
  readonly topic: string;
  readonly partition: number;
  readonly messages: readonly Message[];
}

/** A newest record of a partition: what the relay compares with its outbox before it publishes. */
export interface LastRecord {
  readonly topic: string;
  readonly partition: number;
  /** Undefined: the partition has records, and none could be read in time. */
  readonly message: Message | undefined;
}

/**
 * Writes messages to a broker. `turnout/kafkajs` and `turnout/testing` implement it; `test/contracts/publisher.ts` is
 * the suite both pass.
 *
 * - `send` resolves when every message of every batch is acknowledged by all in-sync replicas, and rejects
 *   (TURNOUT_PUBLISH_FAILED, TURNOUT_BROKER_UNREACHABLE) if that is not certain: some may have been written.
 *   Messages of one batch are written in their order. A partition may appear once per call. The caller never
 *   has two calls in flight that share a partition; calls that share none may overlap.
 * - A message that the broker refuses for good (too large) rejects with TURNOUT_PAYLOAD_TOO_LARGE; nothing of the call may then be
 *   assumed written, and nothing of the partition of that message is. Where the call had one batch, details are `{ topic, partition }`.
 * - `connect` may be called again after `disconnect`. Both do nothing when there is nothing to do.
 */
export interface Publisher {
  connect(): Promise<void>;
  send(batches: readonly PartitionBatch[]): Promise<void>;
  /** Partition counts of the topics that exist; a topic that doesn't is missing from the map. */
  partitionCounts(topics: readonly string[]): Promise<Map<string, number>>;
  /** The newest record of each source (`ce_source`), as far as it is among the last few of a partition, for each partition that has any. */
  lastRecords(topics: readonly string[]): Promise<LastRecord[]>;
  disconnect(): Promise<void>;
}
