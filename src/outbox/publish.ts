import type { Queryable } from '../database/index.ts';
import { TurnoutError, fromDatabaseError } from '../errors/index.ts';
import type { Route, Turn } from '../event/index.ts';
import type { PublishRequest } from './prepare.ts';
import { prepareEvents } from './prepare.ts';

/** An event that is in the outbox, as far as its transaction is: it is published if that commits. */
export interface PublishedEvent {
  readonly id: string;
  readonly type: string;
  readonly version: number;
  readonly topic: string;
  readonly key: string | null;
  /** Place in the outbox. */
  readonly seq: bigint;
  readonly time: Date;
  /** As it was stored, and as consumers will read it. */
  readonly data: unknown;
  readonly headers: Readonly<Record<string, string>>;
  /** One for each switchover that was declared for the event's type. */
  readonly stamps: readonly PublishedStamp[];
  /** Its id was published before, by this transaction or another: this is what was written then, and nothing was written now. */
  readonly isKnown: boolean;
}

/** Which way the event goes to one consumer in switchover. */
export interface PublishedStamp {
  readonly switchover: string;
  readonly consumer: string;
  readonly route: Route;
  readonly epoch: number;
  readonly effectKey: string;
  /** Stamped in stage `shadow`. */
  readonly shadow: boolean;
  /** For ordered switchovers. */
  readonly turn: Turn | undefined;
}

/** A switchover as the calling code knows it; its row may know more event types, or fewer. */
export interface DeclaredSwitchover {
  readonly name: string;
  /** Those for which the calling code has given its calls away. */
  readonly eventTypes: readonly string[];
}

export interface PublishOptions {
  readonly source: string;
  /** What the calling code has given its calls to; consumers of other switchovers get no route, nor do other event types. */
  readonly switchovers: readonly DeclaredSwitchover[];
  /** Whether the caller makes the calls itself right after the commit; if not, the sweeper makes them at once. */
  readonly deliver: boolean;
}

interface PublishedRow {
  readonly seq: string;
  readonly id: string;
  readonly version: string;
  readonly topic: string;
  readonly key: string | null;
  readonly ms: string;
  readonly stamps: string;
  /** These three only where ids were given. */
  readonly is_known?: 'true' | 'false';
  /** Of a known event, while the outbox has it. */
  readonly data?: string | null;
  readonly headers?: string | null;
}

interface StoredStamp extends Omit<PublishedStamp, 'turn' | 'shadow'> {
  readonly shadow?: boolean;
  readonly generation?: number;
  readonly number?: number;
}

// Text in, text out: what the user has told the driver about types changes nothing.
const publishStatement = `
  select p.seq, p.id::text as id, p.version::text as version, p.topic, p.key,
         (extract(epoch from p.occurred_at) * 1000)::bigint::text as ms, p.stamps::text as stamps
  from turnout.publish_events($1, $2::text::json, deliver => $3::text::boolean) p
  order by p.seq::bigint`;

/** For events of which some have ids of their own, which are published once. Known ones have lower numbers than new ones beside them. */
const publishOnceStatement = `
  select p.seq, p.id::text as id, p.version::text as version, p.topic, p.key,
         (extract(epoch from p.occurred_at) * 1000)::bigint::text as ms, p.stamps::text as stamps,
         p.is_known::text as is_known, p.data::text as data, p.headers::text as headers
  from turnout.publish_once($1, $2::text::json, deliver => $3::text::boolean) p
  order by p.place`;

/**
 * Writes events to the outbox in the caller's transaction, in the order given, with one round trip. Resolves once the
 * server has answered; the events are published if and when the transaction commits.
 *
 * Keyed events are serialised with all others of their key until the transaction ends. An event with an id of the caller's is
 * published once: again, it gives what was written the first time.
 * Throws TURNOUT_EVENT_DATA_INVALID, TURNOUT_KEY_MISSING, TURNOUT_PAYLOAD_TOO_LARGE (before anything is sent),
 * TURNOUT_SOURCE_UNREGISTERED, TURNOUT_EVENT_TYPE_UNREGISTERED, TURNOUT_SWITCHOVER_UNKNOWN,
 * TURNOUT_SWITCHOVER_TYPE_MISSING, TURNOUT_EVENT_ID_REUSED, TURNOUT_TOO_MANY_KEYS, TURNOUT_TRANSACTION_ABORTED.
 *
 * @example
 * const [placed] = await publishEvents(database.within(tx), { source: 'orders', switchovers: [], deliver: false }, [
 *   { definition: OrderPlaced, data: order },
 * ]);
 */
export async function publishEvents(
  tx: Queryable,
  options: PublishOptions,
  requests: readonly PublishRequest[],
): Promise<PublishedEvent[]> {
  const events = await prepareEvents(requests);
  if (events.length === 0) return [];
  const json = JSON.stringify(
    events.map((event) => {
      const switchovers = options.switchovers.filter(({ eventTypes }) => eventTypes.includes(event.type));
      return switchovers.length === 0 ? event : { ...event, switchovers: switchovers.map(({ name }) => name) };
    }),
  );
  const statement = events.some(({ id }) => id !== undefined) ? publishOnceStatement : publishStatement;
  const rows = await publishRows(tx, statement, [options.source, json, String(options.deliver)]);
  const stored = JSON.parse(json) as { data: unknown }[];
  return events.map((event, index) => {
    const row = rows[index]!;
    return {
      id: row.id,
      type: event.type,
      version: Number(row.version),
      topic: row.topic,
      key: row.key,
      seq: BigInt(row.seq),
      time: new Date(Number(row.ms)),
      ...contentOf(row, stored[index]!.data, event.headers),
      stamps: (JSON.parse(row.stamps) as StoredStamp[]).map(stampOf),
      isKnown: row.is_known === 'true',
    };
  });
}

/** What was published the first time: a client's second try may say it in other words, and calls that are owed must not. */
function contentOf(
  { data, headers }: PublishedRow,
  given: unknown,
  givenHeaders: Readonly<Record<string, string>> = {},
): Pick<PublishedEvent, 'data' | 'headers'> {
  if (typeof data !== 'string') return { data: given, headers: givenHeaders };
  return {
    data: JSON.parse(data) as unknown,
    headers: typeof headers === 'string' ? (JSON.parse(headers) as Record<string, string>) : {},
  };
}

async function publishRows(tx: Queryable, statement: string, values: string[]): Promise<PublishedRow[]> {
  try {
    return (await tx.query<PublishedRow>(statement, values)).rows;
  } catch (error) {
    throw publishError(error);
  }
}

function publishError(error: unknown): unknown {
  if (sqlStateOf(error) !== '25P02') return fromDatabaseError(error);
  return new TurnoutError('TURNOUT_TRANSACTION_ABORTED', 'The transaction had failed before the event was published.', {
    cause: error,
  });
}

function stampOf({
  switchover,
  consumer,
  route,
  epoch,
  effectKey,
  shadow = false,
  generation,
  number,
}: StoredStamp): PublishedStamp {
  const turn = generation === undefined || number === undefined ? undefined : { generation, number };
  return { switchover, consumer, route, epoch, effectKey, shadow, turn };
}

/**
 * Takes the locks of keys early, in the order in which everybody takes them, so that a transaction that publishes them
 * one by one can't deadlock with another. Held until the transaction ends. Throws TURNOUT_TOO_MANY_KEYS, TURNOUT_KEY_MISSING.
 */
export async function lockKeys(tx: Queryable, topic: string, keys: readonly string[]): Promise<void> {
  if (keys.some((key) => typeof key !== 'string' || key === '')) {
    throw new TurnoutError('TURNOUT_KEY_MISSING', `One of the keys to be locked on ${topic} is empty.`, {
      details: { topic },
    });
  }
  try {
    await tx.query('select turnout.lock_keys($1, array(select json_array_elements_text($2::text::json)))', [
      topic,
      JSON.stringify(keys),
    ]);
  } catch (error) {
    throw publishError(error);
  }
}

/** The SQLSTATE of a driver's error, also where TypeORM has wrapped it. */
export function sqlStateOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const { code, driverError, cause } = error as { code?: unknown; driverError?: unknown; cause?: unknown };
  if (typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code)) return code;
  return sqlStateOf(driverError) ?? (error instanceof TurnoutError ? sqlStateOf(cause) : undefined);
}
