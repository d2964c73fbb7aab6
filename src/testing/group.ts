// A consumer group of the in-memory broker. It behaves as a Kafka group with eager rebalancing does: when a member comes
// or goes, all are asked to give up their partitions; each finishes the batches it has in hand and asks for a seat again;
// when all have asked, the partitions are dealt out anew. A member that doesn't come back in time loses its seat: what it
// still does is the work of a zombie, and whoever relies on the group must be able to bear that.
//
//   seated ── somebody joins or leaves ──▶ revoked ── batches in hand returned ──▶ waiting ── all wait ──▶ seated
//                                             └── too late ──▶ without a seat ── asks again ──▶ waiting
import type { TopicPartition } from '../consumer/index.ts';

/** What a member was given until the next rebalance. */
export interface Assignment {
  readonly partitions: readonly TopicPartition[];
  /** Aborted when the partitions have to be given up. */
  readonly signal: AbortSignal;
}

export interface Seat {
  readonly topics: readonly string[];
  /** Waits for all members and gives this one's share; undefined after {@link leave}. */
  take(): Promise<Assignment | undefined>;
  /** Gives up the seat; called again, does nothing. */
  leave(): void;
  /** Records how far the group has come; ignored once the partitions have been dealt out anew, or the seat was lost. */
  commit(assignment: Assignment, partition: TopicPartition, offset: bigint): void;
}

export interface Group {
  readonly committed: Map<string, Map<number, bigint>>;
  readonly isEmpty: boolean;
  seat(topics: readonly string[]): Seat;
  /** Deals the partitions out anew, for instance because a topic has more of them. */
  rebalance(): void;
}

interface Place {
  readonly topics: readonly string[];
  revoke: AbortController | undefined;
  holds: Assignment | undefined;
  waiting: ((assignment: Assignment | undefined) => void) | undefined;
}

export function createGroup(partitionCount: (topic: string) => number, rebalanceTimeoutMs: number): Group {
  const committed = new Map<string, Map<number, bigint>>();
  const places = new Set<Place>();
  let timer: NodeJS.Timeout | undefined;

  function rebalance(): void {
    for (const place of places) place.revoke?.abort();
    timer ??= setTimeout(() => {
      for (const place of places) if (place.waiting === undefined) places.delete(place);
      dealWhenAllWait();
    }, rebalanceTimeoutMs).unref();
    dealWhenAllWait();
  }

  function dealWhenAllWait(): void {
    if (![...places].every((place) => place.waiting !== undefined)) return;
    clearTimeout(timer);
    timer = undefined;
    const shares = deal([...places], partitionCount);
    for (const [place, partitions] of shares) {
      const revoke = new AbortController();
      const seated = place.waiting!;
      place.revoke = revoke;
      place.holds = { partitions, signal: revoke.signal };
      place.waiting = undefined;
      seated(place.holds);
    }
  }

  return {
    committed,
    rebalance,
    get isEmpty() {
      return places.size === 0;
    },
    seat(topics) {
      const place: Place = { topics, revoke: undefined, holds: undefined, waiting: undefined };
      let left = false;
      return {
        topics,
        take() {
          if (left) return Promise.resolve(undefined);
          return new Promise((resolve) => {
            place.waiting = resolve;
            if (places.has(place)) return dealWhenAllWait();
            places.add(place);
            rebalance();
          });
        },
        leave() {
          if (left) return;
          left = true;
          place.revoke?.abort();
          place.waiting?.(undefined);
          place.waiting = undefined;
          if (places.delete(place)) rebalance();
        },
        commit(assignment, { topic, partition }, offset) {
          if (!places.has(place) || place.holds !== assignment) return;
          const offsets = committed.get(topic) ?? new Map<number, bigint>();
          committed.set(topic, offsets.set(partition, offset));
        },
      };
    },
  };
}

/** Partitions dealt out in turn to the members that subscribe to their topic. */
function deal(places: readonly Place[], partitionCount: (topic: string) => number): Map<Place, TopicPartition[]> {
  const shares = new Map(places.map((place): [Place, TopicPartition[]] => [place, []]));
  let turn = 0;
  for (const topic of new Set(places.flatMap((place) => place.topics))) {
    const subscribed = places.filter((place) => place.topics.includes(topic));
    for (let partition = 0; partition < partitionCount(topic); partition++) {
      shares.get(subscribed[turn++ % subscribed.length]!)!.push({ topic, partition });
    }
  }
  return shares;
}
