import type { Message } from '../event/index.ts';
import type { Logger } from '../lifecycle/index.ts';

export interface TopicPartition {
  readonly topic: string;
  readonly partition: number;
}

/** The offsets that a partition holds: `low` is the first, `high` the one that the next message will get. */
export interface PartitionBounds {
  readonly partition: number;
  readonly low: bigint;
  readonly high: bigint;
}

export interface SourceMessage extends Message {
  readonly offset: bigint;
}

export interface Batch extends TopicPartition {
  /** In offset order, at least one; offsets may have gaps (transactions, compaction). */
  readonly messages: readonly SourceMessage[];
  /** Aborted when the consumer stops or loses the partition; work in hand may be finished, but can't commit its position. */
  readonly signal: AbortSignal;
  /** Tells the group that this member lives; to be called at least every few seconds while a batch takes long. Never rejects. */
  heartbeat(): Promise<void>;
}

/** How a consumer takes part in its group. */
export interface Subscription {
  readonly group: string;
  readonly topics: readonly string[];
  /**
   * Called after each assignment, before any batch of these partitions is handed out; gives the offset at which each is to be read.
   * The source commits these offsets to the group, so that lag tools see them. Calls come one after the other; `signal` is
   * aborted when the assignment is over, and what is given then is not used. If it rejects, the subscription fails with that error.
   */
  readonly onAssigned: (
    partitions: readonly TopicPartition[],
    signal: AbortSignal,
  ) => Promise<readonly (TopicPartition & { readonly offset: bigint })[]>;
  /**
   * Handles a batch; batches of one partition come one after the other, those of several partitions may overlap.
   * Gives the next offset to read: behind the last message when all is done, lower to have the rest again after `retryAfterMs`.
   * The source commits it to the group (for lag tools) only after this has resolved. If it rejects, the subscription fails with that error.
   */
  readonly onBatch: (batch: Batch) => Promise<{ readonly next: bigint; readonly retryAfterMs?: number }>;
  /** Hears of a broker that can't be reached and of attempts to get back to it. Default: says nothing. */
  readonly logger?: Logger;
}

/** A running membership. It outlives a broker that is away for a while: it logs, waits, and joins again. */
export interface Membership {
  /** Leaves the group once batches in hand have returned. Never rejects; called again, gives the same promise. */
  close(): Promise<void>;
  /** Rejects when the membership has failed for good; resolves after `close`. */
  readonly closed: Promise<void>;
}

/**
 * Reads topics as a member of a group. `turnout/kafkajs` and `turnout/testing` implement it;
 * `test/contracts/source.ts` is the suite both pass. Positions are the caller's: what the group has committed at the broker is
 * never where reading starts, and a message is never skipped because an offset is out of range.
 */
export interface Source {
  /**
   * Joins the group; resolves once it is a member. Throws TURNOUT_BROKER_UNREACHABLE, TURNOUT_TOPIC_MISSING. A position outside
   * of what a partition holds fails the membership with TURNOUT_POSITION_OUT_OF_RANGE, details `{ topic, partition, position, low, high }`.
   */
  join(subscription: Subscription): Promise<Membership>;
  /** Throws TURNOUT_TOPIC_MISSING, TURNOUT_BROKER_UNREACHABLE. */
  bounds(topic: string): Promise<PartitionBounds[]>;
  /** Offsets that the group has committed, by partition; partitions without one are missing. */
  committed(group: string, topic: string): Promise<Map<number, bigint>>;
  /** Whether the group has a member that is at work just now, or about to be; a group that was never seen has none. Throws TURNOUT_BROKER_UNREACHABLE. */
  running(group: string): Promise<boolean>;
  /** Commits offsets for a group that has no member. Gives false, having done nothing, if it has one. */
  commitWhileEmpty(group: string, topic: string, offsets: ReadonlyMap<number, bigint>): Promise<boolean>;
}
