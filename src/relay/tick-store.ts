import { TurnoutError } from '../errors/index.ts';
import { failpoint } from '../lifecycle/index.ts';
import type { Queryable, Session } from '../database/index.ts';
import type { Numbers } from './numbers.ts';

/**
 * A row of `turnout.relay_tick`: what became visible between the snapshots `lo` and `hi`, in the order of `seq`, behind `afterSeq`.
 * A tick whose `lo` and `hi` are equal holds nothing: it closes the one before it.
 */
export interface Tick {
  readonly tick: bigint;
  readonly lo: string;
  readonly hi: string;
  /** What is up to here has been acknowledged by the broker. */
  readonly afterSeq: bigint;
  /** The counts before the first event behind `afterSeq`. */
  readonly numbers: Numbers;
  readonly relay: string;
}

/** A row of the outbox as text, in the order of {@link columns}. */
export type Row = readonly (string | null)[];

/** Places in a {@link Row}. */
export const column = {
  seq: 0,
  id: 1,
  source: 2,
  topic: 3,
  key: 4,
  type: 5,
  version: 6,
  payload: 7,
  routes: 8,
  headers: 9,
  time: 10,
} as const;

const columns =
  'o.seq, o.id, o.source, o.topic, o.aggregateid, o.type, o.version, o.payload, o.routes, o.headers, o.occurred_at';

/** Before everything: the first tick of a database starts here, so that what was published before the first relay isn't lost. */
export const beginning = '1:1:';

// One shard until sharding is built; the tables and locks are laid out for more.
const shard = 0;

/**
 * The rows visible in `hi` and not in `lo`, in two arms: transactions that began after `lo`, and those in progress in `lo` that
 * have ended since. Without the upper bound of the first, and without leaving out what is still in progress in the second, one
 * big open transaction would have its rows looked at by every poll.
 */
function between(lo: string, hi: string, condition: string): string {
  return `(
    select ${columns} from turnout.outbox o
      where o.xid >= pg_snapshot_xmax(${lo}) and o.xid < pg_snapshot_xmax(${hi}) and ${condition}
    union all
    select ${columns} from turnout.outbox o
      where o.xid = any (array(select x from pg_snapshot_xip(${lo}) x where pg_visible_in_snapshot(x, ${hi}))) and ${condition})`;
}

const newestTick = `coalesce((select max(t.tick) from turnout.relay_tick t where t.shard = ${shard}), 0)`;

/** One statement and one snapshot for all of it: the poll, the first page, and the tick that fixes what is read. */
function pollStatement(rows: string, persist: boolean): string {
  const persisted = `insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
      select ${shard}, $2::bigint + 1, $1::pg_snapshot, now.hi, $3::jsonb, $4::text from now
      where exists (select from page) and ${newestTick} = $2::bigint
      returning tick`;
  return `with now as materialized (select pg_current_snapshot() as hi),
    page as materialized (select * from ${rows} r order by r.seq limit $5::integer),
    persisted as (${persist ? persisted : `select $2::bigint + 1 as tick, $3::jsonb, $4::text from page limit 1`})
    select 0::bigint as seq, null::uuid, now.hi::text, (select p.tick from persisted p)::text,
           null::text, null::text, null::integer, null::json, null::text, null::jsonb, null::timestamptz from now
    union all select page.* from page
    order by seq`;
}

// pg_visible_in_snapshot is not asked here: what a statement sees is what its own snapshot sees.
const twoSnapshots = between('$1::pg_snapshot', 'pg_current_snapshot()', 'true');
const poll = pollStatement(twoSnapshots, true);
const pollWithoutTick = pollStatement(twoSnapshots, false);
const pollAboveLastId = pollStatement(`(select ${columns} from turnout.outbox o where o.seq > $6::bigint)`, true);

const pageStatement = `select * from ${between('$1::pg_snapshot', '$2::pg_snapshot', 'pg_visible_in_snapshot(o.xid, $2::pg_snapshot) and o.seq > $3::bigint')} r order by r.seq`;

const append = `insert into turnout.relay_tick (shard, tick, lo, hi, after_seq, numbers, relay)
  select ${shard}, $1::bigint + 1, $2::pg_snapshot, $3::pg_snapshot, $4::bigint, $5::jsonb, $6::text
  where ${newestTick} = $1::bigint`;

/** Settings of the sessions that read the outbox. They stay with the session: close it, don't give it back. */
export async function prepareSession(session: Session, applicationName: string): Promise<void> {
  const settings: Record<string, string> = {
    application_name: applicationName,
    // The idle poll takes a fraction of a millisecond with these and hundreds without: the planner takes the generic plan's
    // worst case (all of the outbox) for real.
    max_parallel_workers_per_gather: '0',
    enable_seqscan: 'off',
    jit: 'off',
    // A cursor here is always read to its end.
    cursor_tuple_fraction: '1',
    // A backlog of some hundred thousand events is sorted in memory.
    work_mem: '128MB',
    // A tick that a crash of the server forgets would be published again with other contents.
    synchronous_commit: 'on',
    default_transaction_isolation: 'read committed',
    default_transaction_read_only: 'off',
    statement_timeout: '0',
    lock_timeout: '0',
    idle_in_transaction_session_timeout: '0',
    idle_session_timeout: '0',
    // A leader whose host has gone without a word loses its backend, and so its lock, in half a minute instead of hours.
    tcp_keepalives_idle: '15',
    tcp_keepalives_interval: '5',
    tcp_keepalives_count: '3',
    // occurred_at is read as text.
    timezone: 'UTC',
    datestyle: 'ISO',
  };
  const calls = Object.entries(settings).map(([name, value]) => `set_config('${name}', '${value}', false)`);
  await session.queryText(`select ${calls.join(', ')}`);
}

/** The newest tick, which is the only one that a replay needs. */
export async function readNewestTick(session: Session): Promise<Tick | undefined> {
  const [row] = await session.queryText(
    `select t.tick, t.lo, t.hi, t.after_seq, t.numbers, t.relay from turnout.relay_tick t where t.shard = ${shard} order by t.tick desc limit 1`,
  );
  if (row === undefined) return undefined;
  const [tick, lo, hi, afterSeq, numbers, relay] = row as string[];
  return {
    tick: BigInt(tick!),
    lo: lo!,
    hi: hi!,
    afterSeq: BigInt(afterSeq!),
    numbers: JSON.parse(numbers!) as Numbers,
    relay: relay!,
  };
}

export interface Poll {
  readonly hi: string;
  /** The first rows of the tick; none: nothing has become visible since `lo`, and nothing was written. */
  readonly rows: readonly Row[];
}

/**
 * Reads what has become visible since `lo` and persists it as the tick after `known`. When it resolves, the tick is durable, so
 * that it may be published. Throws TURNOUT_RELAY_FENCED if another relay has written a tick since `known`.
 */
export async function pollTick(
  session: Session,
  from: { lo: string; known: bigint; numbers: Numbers; relay: string; limit: number; lastSeq: bigint },
): Promise<Poll> {
  const values = [from.lo, from.known.toString(), JSON.stringify(from.numbers), from.relay, String(from.limit)];
  const statement = failpoint('relay.read-above-last-id')
    ? pollAboveLastId
    : failpoint('relay.persist-tick-after-publish')
      ? pollWithoutTick
      : poll;
  if (statement === pollAboveLastId) values.push(from.lastSeq.toString());
  const [head, ...rows] = await fencing(session.queryText(statement, values));
  if (rows.length > 0 && head![3] === null) throw fenced();
  return { hi: head![2]!, rows };
}

/** Writes a tick, a checkpoint or a close after the tick `known`. Throws TURNOUT_RELAY_FENCED if that isn't the newest any more. */
export async function appendTick(session: Session, known: bigint, next: Omit<Tick, 'tick'>): Promise<Tick> {
  const values = [
    known.toString(),
    next.lo,
    next.hi,
    next.afterSeq.toString(),
    JSON.stringify(next.numbers),
    next.relay,
  ];
  const rows = await fencing(session.queryText(`${append} returning tick`, values));
  if (rows.length === 0) throw fenced();
  return { ...next, tick: known + 1n };
}

/** The rows of a tick behind `afterSeq`, at most `limit`. The same each time it is read. */
export async function readPage(session: Session, tick: Tick, limit: number): Promise<Row[]> {
  return session.queryText(`${pageStatement} limit $4::integer`, [
    tick.lo,
    tick.hi,
    tick.afterSeq.toString(),
    String(limit),
  ]);
}

/**
 * The rows of a tick behind `afterSeq`, in pages, through one cursor: paging by `limit` would sort or walk the rest anew for each.
 * Resolves when the first page has been asked for; each further one is asked for when the one before it is handed out, so that the
 * server works ahead. The session is in a transaction until the pages are read to their end.
 */
export async function openPages(session: Session, tick: Tick, pageSize: number): Promise<AsyncGenerator<Row[], void>> {
  await session.queryText('begin read only');
  await session.queryText(`declare turnout_tick no scroll cursor for ${pageStatement}`, [
    tick.lo,
    tick.hi,
    tick.afterSeq.toString(),
  ]);
  const fetch = async (): Promise<Row[]> => session.queryText(`fetch forward ${pageSize} from turnout_tick`);
  return pagesFrom(session, fetch, pageSize);
}

function pagesFrom(session: Session, fetch: () => Promise<Row[]>, pageSize: number): AsyncGenerator<Row[], void> {
  // Here and not in the generator, which does nothing until it is read.
  let next = fetch();
  next.catch(() => undefined);
  return (async function* () {
    for (;;) {
      const rows = await next;
      if (rows.length < pageSize) {
        if (rows.length > 0) yield rows;
        await session.queryText('commit');
        return;
      }
      next = fetch();
      next.catch(() => undefined);
      yield rows;
    }
  })();
}

/** Whether anything has become visible since the snapshot `lo`. */
export async function hasWork(session: Session, lo: string): Promise<boolean> {
  const [row] = await session.queryText(`select exists (select from ${twoSnapshots} r)`, [lo]);
  return row?.[0] === 't';
}

/** The highest seq visible in a snapshot: where reading by "id > last", which is what this relay does not do, would go on. */
export async function lastSeqIn(session: Queryable, snapshot: string): Promise<bigint> {
  const { rows } = await session.query<{ seq: string }>(
    'select coalesce(max(o.seq), 0)::text as seq from turnout.outbox o where pg_visible_in_snapshot(o.xid, $1::pg_snapshot)',
    [snapshot],
  );
  return BigInt(rows[0]?.seq ?? 0);
}

async function fencing<Result>(statement: Promise<Result>): Promise<Result> {
  try {
    return await statement;
  } catch (error) {
    // Two relays wrote the same tick at the same time: its primary key let one of them through.
    if ((error as { code?: unknown }).code === '23505') throw fenced(error);
    throw error;
  }
}

function fenced(cause?: unknown): TurnoutError {
  return new TurnoutError('TURNOUT_RELAY_FENCED', 'Another relay has written a newer tick.', { cause });
}
