import type { SourceMessage } from '../consumer/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Message } from '../event/index.ts';

/** One partition: offsets are dense, from `low` on. */
export interface PartitionLog {
  low: bigint;
  readonly messages: SourceMessage[];
}

/** All that the members of one in-memory broker share. */
export interface BrokerState {
  readonly topics: Map<string, PartitionLog[]>;
  reachable: boolean;
  /** Resolves at the next change of anything, or when `signal` is aborted. */
  changed(signal: AbortSignal): Promise<void>;
  /** To be called after every change. */
  announce(): void;
}

export function brokerState(): BrokerState {
  const listeners = new Set<() => void>();
  return {
    topics: new Map(),
    reachable: true,
    changed(signal) {
      return new Promise((resolve) => {
        if (signal.aborted) return resolve();
        const done = (): void => {
          listeners.delete(done);
          signal.removeEventListener('abort', done);
          resolve();
        };
        listeners.add(done);
        signal.addEventListener('abort', done, { once: true });
      });
    },
    announce() {
      // A copy: who hears of this change waits for the next one at once.
      for (const listener of Array.from(listeners)) listener();
    },
  };
}

export function highOf(log: PartitionLog): bigint {
  return log.low + BigInt(log.messages.length);
}

export function append(log: PartitionLog, message: Message): void {
  // Copied: what a broker has accepted doesn't change when the sender goes on using its objects.
  const { key, value, headers } = message;
  log.messages.push({
    offset: highOf(log),
    key,
    value: value === null ? null : Buffer.from(value),
    headers: { ...headers },
  });
}

/** At most `limit` messages from `offset` on, which must lie within the log. */
export function read(log: PartitionLog, offset: bigint, limit: number): SourceMessage[] {
  const from = Number(offset - log.low);
  return log.messages.slice(from, from + limit);
}

/** The partitions of a topic. Throws TURNOUT_BROKER_UNREACHABLE, TURNOUT_TOPIC_MISSING. */
export function partitionsOf(state: BrokerState, topic: string): PartitionLog[] {
  requireReachable(state);
  const partitions = state.topics.get(topic);
  if (partitions === undefined)
    throw new TurnoutError('TURNOUT_TOPIC_MISSING', `Topic ${topic} does not exist.`, { details: { topic } });
  return partitions;
}

export function requireReachable(state: BrokerState): void {
  if (!state.reachable)
    throw new TurnoutError('TURNOUT_BROKER_UNREACHABLE', 'The in-memory broker was told to be unreachable.');
}
