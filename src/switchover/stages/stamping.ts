// What `turnout.publish_events` writes with events, as plain data in, plain data out: the SQL function is the one that counts, since
// publishers of every language share it; a test holds both equal on PostgreSQL, and the explorer runs this one.
import { effectKeyOf } from '../../event/index.ts';
import type { Ordering, Stamp } from '../../event/index.ts';
import { routeFor } from '../stage.ts';
import type { Routing } from '../stage.ts';

/** What a row of turnout.switchover says to a publisher. */
export interface StampingRow extends Routing {
  readonly name: string;
  readonly consumer: string;
  readonly order: Ordering;
  readonly epoch: number;
  readonly generation: number;
}

/** How far a key was counted for an ordered consumer: a row of turnout.key_number. */
export interface KeyNumber {
  readonly consumer: string;
  readonly topic: string;
  readonly key: string;
  readonly generation: number;
  readonly number: number;
}

export interface EventToStamp {
  readonly id: string;
  readonly topic: string;
  readonly key: string | null;
  /** To which switchovers the publishing code has given the calls for it. */
  readonly switchovers: readonly string[];
}

/** A stamp, and the switchover it is of. */
export interface EventStamp extends Stamp {
  readonly switchover: string;
  /** Made in stage `shadow`: the call is made, and the consumer may compare. */
  readonly shadow: boolean;
  readonly effectKey: string;
}

export interface Stamped {
  /** Of each event, in the order given: its stamps, by consumer. */
  readonly stamps: readonly (readonly EventStamp[])[];
  /** The rows of turnout.key_number that change. */
  readonly numbers: readonly KeyNumber[];
  /** The effect keys of the calls that are owed from now on. */
  readonly owed: readonly string[];
}

/**
 * Stamps the events of one `publish`, in the order given; `rows` (of switchovers that have the events' type) and `numbers` as the
 * publishing statement sees them. What is done stays declared, whatever the code says: it may be deleted, and the consumer would only
 * observe an event without a route.
 */
export function stampEvents(given: {
  readonly rows: readonly StampingRow[];
  readonly numbers: readonly KeyNumber[];
  readonly events: readonly EventToStamp[];
}): Stamped {
  const counted = new Map<string, KeyNumber>();
  const stamps = given.events.map((event) =>
    given.rows
      .filter((row) => event.switchovers.includes(row.name) || row.stage === 'done')
      .map((row): EventStamp => {
        const number = row.order === 'key' ? nextNumber(row, event, given.numbers, counted) : undefined;
        return {
          switchover: row.name,
          consumer: row.consumer,
          route: routeFor(row, event.key ?? event.id),
          shadow: row.stage === 'shadow',
          epoch: row.epoch,
          effectKey: effectKeyOf(row.consumer, event.id),
          turn: number === undefined ? undefined : { generation: row.generation, number },
        };
      })
      .toSorted((one, other) => (one.consumer < other.consumer ? -1 : 1)),
  );
  const owed = stamps
    .flat()
    .filter(({ route }) => route === 'rpc')
    .map(({ effectKey }) => effectKey);
  return { stamps, numbers: [...counted.values()], owed };
}

/** Counts one event of a key; a generation other than the row's begins at 1. */
function nextNumber(
  { consumer, generation }: StampingRow,
  { topic, key }: EventToStamp,
  numbers: readonly KeyNumber[],
  counted: Map<string, KeyNumber>,
): number {
  const place = JSON.stringify([consumer, topic, key]);
  const before =
    counted.get(place) ?? numbers.find((row) => row.consumer === consumer && row.topic === topic && row.key === key);
  const number = 1 + (before?.generation === generation ? before.number : 0);
  counted.set(place, { consumer, topic, key: key!, generation, number });
  return number;
}
