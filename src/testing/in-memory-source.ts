import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Membership, Source, SourceMessage, Subscription, TopicPartition } from '../consumer/index.ts';
import { TurnoutError } from '../errors/index.ts';
import { sleep } from '../lifecycle/index.ts';
import { createGroup } from './group.ts';
import type { Assignment, Group, Seat } from './group.ts';
import { highOf, partitionsOf, read } from './partition-log.ts';
import type { BrokerState } from './partition-log.ts';

export interface Groups {
  get(name: string): Group;
  /** All groups deal their partitions out anew. */
  rebalance(): void;
}

export function createGroups(state: BrokerState, rebalanceTimeoutMs: number): Groups {
  const groups = new Map<string, Group>();
  return {
    get(name) {
      const group =
        groups.get(name) ?? createGroup((topic) => state.topics.get(topic)?.length ?? 0, rebalanceTimeoutMs);
      groups.set(name, group);
      return group;
    },
    rebalance() {
      for (const group of groups.values()) if (!group.isEmpty) group.rebalance();
    },
  };
}

export function inMemorySource(state: BrokerState, groups: Groups, batchSize: number): Source {
  return {
    async join(subscription) {
      for (const topic of subscription.topics) partitionsOf(state, topic);
      await nextTurn();
      return await startMember(
        state,
        groups.get(subscription.group).seat(subscription.topics),
        subscription,
        batchSize,
      );
    },
    async bounds(topic) {
      await nextTurn();
      return partitionsOf(state, topic).map((log, partition) => ({ partition, low: log.low, high: highOf(log) }));
    },
    async committed(group, topic) {
      await nextTurn();
      partitionsOf(state, topic);
      return new Map(groups.get(group).committed.get(topic));
    },
    async running(group) {
      await nextTurn();
      return !groups.get(group).isEmpty;
    },
    async commitWhileEmpty(group, topic, offsets) {
      await nextTurn();
      partitionsOf(state, topic);
      const { isEmpty, committed } = groups.get(group);
      if (!isEmpty) return false;
      committed.set(topic, new Map([...(committed.get(topic) ?? []), ...offsets]));
      return true;
    },
  };
}

async function startMember(
  state: BrokerState,
  seat: Seat,
  subscription: Subscription,
  batchSize: number,
): Promise<Membership> {
  const closing = new AbortController();
  const first = await seat.take();
  let working = false;

  async function work(): Promise<void> {
    try {
      let assignment = first;
      while (assignment !== undefined && !closing.signal.aborted) {
        working = true;
        await workAssignment(state, seat, subscription, assignment, batchSize, closing.signal);
        working = false;
        if (!closing.signal.aborted) assignment = await seat.take();
      }
    } finally {
      seat.leave();
    }
  }

  const closed = work();
  // Whoever doesn't look at `closed` must not be ended by an unhandled rejection.
  closed.catch(() => undefined);
  return {
    closed,
    async close() {
      closing.abort();
      if (!working) seat.leave();
      await closed.catch(() => undefined);
    },
  };
}

/** Reads all partitions of an assignment until it is over and no batch is in hand any more. */
async function workAssignment(
  state: BrokerState,
  seat: Seat,
  subscription: Subscription,
  assignment: Assignment,
  batchSize: number,
  closing: AbortSignal,
): Promise<void> {
  // The first failure ends the reading of the other partitions as well, once their batches in hand have returned.
  const failed = new AbortController();
  const over = AbortSignal.any([assignment.signal, closing, failed.signal]);
  if (assignment.partitions.length === 0) {
    while (!over.aborted) await state.changed(over);
    return;
  }
  const positions = await subscription.onAssigned(assignment.partitions, over);
  if (over.aborted) return;
  for (const { topic, partition, offset } of positions) requireInRange(state, { topic, partition }, offset);
  for (const { topic, partition, offset } of positions) seat.commit(assignment, { topic, partition }, offset);

  const readers = positions.map(async ({ topic, partition, offset }) => {
    try {
      await readPartition({ topic, partition }, offset);
    } catch (error) {
      failed.abort();
      throw error;
    }
  });
  const failure = (await Promise.allSettled(readers)).find((result) => result.status === 'rejected');
  if (failure !== undefined) throw failure.reason;

  async function readPartition(place: TopicPartition, offset: bigint): Promise<void> {
    let next = offset;
    while (!over.aborted) {
      const messages = readable(place, next);
      if (messages.length === 0) {
        await state.changed(over);
        continue;
      }
      const result = await subscription.onBatch({ ...place, messages, signal: over, heartbeat: () => nextTurn() });
      next = result.next;
      // Also when the assignment is about to end: until the partitions are dealt out anew, they are this member's.
      seat.commit(assignment, place, next);
      // At least one turn of the event loop, so that a handler that never waits can't keep everybody else from working.
      if (result.retryAfterMs === undefined) await nextTurn();
      else await sleep(result.retryAfterMs, over);
    }
  }

  function readable(place: TopicPartition, offset: bigint): SourceMessage[] {
    if (!state.reachable) return [];
    requireInRange(state, place, offset);
    return read(partitionsOf(state, place.topic)[place.partition]!, offset, batchSize);
  }
}

function requireInRange(state: BrokerState, { topic, partition }: TopicPartition, position: bigint): void {
  const log = state.topics.get(topic)![partition]!;
  const [low, high] = [log.low, highOf(log)];
  if (position >= low && position <= high) return;
  throw new TurnoutError(
    'TURNOUT_POSITION_OUT_OF_RANGE',
    `Position ${position} of partition ${partition} of topic ${topic} is outside of what it holds (${low} to ${high}).`,
    { details: { topic, partition, position, low, high } },
  );
}
