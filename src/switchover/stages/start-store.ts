// A switchover's row, and where its consumer starts.
import type { Queryable } from '../../database/index.ts';
import type { Ordering } from '../../event/index.ts';
import { sleep } from '../../lifecycle/index.ts';
import type { SwitchoverDefinition } from '../define-switchover.ts';
import type { Stage } from '../stage.ts';
import { rowsOf, unknownSwitchover } from './store-rows.ts';

/**
 * Creates a switchover in stage `rpc`, or adds to it the event types that it does not have yet; none is ever taken away.
 * Gives whether it was created. Throws TURNOUT_SWITCHOVER_INVALID, TURNOUT_EVENT_TYPE_UNREGISTERED.
 *
 * @example
 * await registerSwitchover(database, 'orders', confirmation, 'first step');
 */
export async function registerSwitchover(
  database: Queryable,
  source: string,
  definition: Pick<SwitchoverDefinition, 'name' | 'consumer' | 'order' | 'eventTypes'> &
    Partial<Pick<SwitchoverDefinition, 'endpoint'>>,
  reason: string,
): Promise<boolean> {
  const [row] = await rowsOf<{ created: boolean }>(
    database,
    'select turnout.register_switchover($1, $2, $3, $4::text[], $5, $6, $7) as created',
    [
      source,
      definition.name,
      definition.consumer,
      definition.eventTypes,
      definition.order,
      reason,
      definition.endpoint ?? null,
    ],
  );
  return row!.created;
}

/**
 * Whether all transactions that were open when the switchover was created are over: later ones know it. Until then,
 * what the consumer's group has committed may not be recorded as its start.
 */
export async function createdXidFinished(database: Queryable, source: string, name: string): Promise<boolean> {
  const [row] = await rowsOf<{ finished: boolean }>(
    database,
    `select pg_snapshot_xmin(pg_current_snapshot()) > s.created_xid as finished
       from turnout.switchover s where s.source = $1 and s.name = $2`,
    [source, name],
  );
  if (row === undefined) throw unknownSwitchover(source, name);
  return row.finished;
}

/** Where a consumer started: for each topic the offsets of its partitions, from partition 0 on. */
export type Since = Readonly<Record<string, readonly bigint[]>>;

/** What a switchover's row says; undefined if there is no row. Looks at nothing else, so that it is quick. */
export async function switchoverStart(
  database: Queryable,
  source: string,
  name: string,
): Promise<SwitchoverStart | undefined> {
  const [row] = await rowsOf<Omit<SwitchoverStart, 'since'> & { since: string | null }>(
    database,
    `select s.consumer, s.since::text as since, s.stage, s.percent::float8 as percent, s.epoch::float8 as epoch, s.endpoint, s.ordering as "order"
       from turnout.switchover s where s.source = $1 and s.name = $2`,
    [source, name],
  );
  if (row === undefined) return undefined;
  return { ...row, since: row.since === null ? undefined : parseSince(row.since) };
}

export interface SwitchoverStart {
  readonly consumer: string;
  readonly since: Since | undefined;
  readonly stage: Stage;
  readonly percent: number;
  readonly epoch: number;
  readonly endpoint: 'wrapped' | 'bridged';
  readonly order: Ordering;
}

/** The names of a source's switchovers. */
export async function switchoverNames(database: Queryable, source: string): Promise<string[]> {
  const rows = await rowsOf<{ name: string }>(
    database,
    'select s.name from turnout.switchover s where s.source = $1 order by s.name',
    [source],
  );
  return rows.map(({ name }) => name);
}

/** Resolves when all transactions that are open now are over, with true; or with false when `patienceMs` have passed. */
export async function openTransactionsOver(database: Queryable, patienceMs: number): Promise<boolean> {
  const [now] = await rowsOf<{ next: string }>(
    database,
    'select pg_snapshot_xmax(pg_current_snapshot())::text as next',
    [],
  );
  const deadline = performance.now() + patienceMs;
  for (;;) {
    const [row] = await rowsOf<{ over: boolean }>(
      database,
      'select pg_snapshot_xmin(pg_current_snapshot()) >= $1::xid8 as over',
      [now!.next],
    );
    if (row!.over) return true;
    if (performance.now() > deadline) return false;
    await sleep(20);
  }
}

/** Records where the consumer started; the first record stands. */
export async function recordSince(database: Queryable, source: string, name: string, since: Since): Promise<void> {
  await rowsOf(database, 'select turnout.record_since($1, $2, $3::jsonb)', [
    source,
    name,
    JSON.stringify(since, (_, offset: unknown) => (typeof offset === 'bigint' ? offset.toString() : offset)),
  ]);
}

export function parseSince(text: string): Since {
  const texts = JSON.parse(text) as Record<string, string[]>;
  return Object.fromEntries(Object.entries(texts).map(([topic, offsets]) => [topic, offsets.map(BigInt)]));
}
