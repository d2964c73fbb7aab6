// What a consumer keeps of its partitions: who owns them, how far they have come, how their sequences are counted.
import type { Database, Queryable } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import { isInTheWay } from '../inbox/index.ts';
import type { HoldReason } from '../inbox/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import type { SequenceState } from './decide.ts';
import type { TopicPartition } from './source.ts';

/** A partition that this process owns, and what it knows of it: what the database had at the claim, moved on by commits. */
export interface OwnedPartition extends TopicPartition {
  readonly consumer: string;
  epoch: bigint;
  next: bigint;
  readonly since: bigint;
  sequences: ReadonlyMap<string, SequenceState>;
}

/** Partitions of a topic that have a position. */
export async function knownPartitions(database: Database, consumer: string, topic: string): Promise<Set<number>> {
  const { rows } = await database.query<{ partition: number }>(
    'select partition from turnout.position where consumer = $1 and topic = $2',
    [consumer, topic],
  );
  return new Set(rows.map((row) => row.partition));
}

/** Records where a consumer starts. Whoever comes first decides: a position that exists stays. */
export async function recordStarts(
  database: Database,
  consumer: string,
  topic: string,
  starts: ReadonlyMap<number, bigint>,
): Promise<void> {
  const offsets = [...starts].map(([partition, offset]) => ({ partition, offset: offset.toString() }));
  await database.query(
    `insert into turnout.position (consumer, topic, partition, next_offset, since)
     select $1, $2, p.partition, p."offset", p."offset"
       from jsonb_to_recordset($3::jsonb) as p (partition integer, "offset" bigint)
     on conflict do nothing`,
    [consumer, topic, JSON.stringify(offsets)],
  );
}

/** How long a claim waits at a time; between two waits it looks who is in its way. */
const claimWaitMs = 1_000;
/** First number of the advisory lock that each transaction of an owner shares; the second one stands for the partition. */
const ownersLock = 7473;

export interface ClaimOptions {
  readonly logger: Logger;
  /** How long a handler of the earlier owner may still go on, in milliseconds: its transaction is not ended before. */
  readonly graceMs: number;
  /** Aborted when the claim is not wanted any more. */
  readonly signal?: AbortSignal;
}

/**
 * Makes this process the owner: counts the epochs up, which waits for transactions of the previous owner that are under way
 * and lets no later one commit; then reads the positions. A transaction that doesn't end (its process is paused, or
 * cut off) would hold the partition up for ever: its backend is ended, when it has had its time. Others that are in the
 * way (another claim, a migration) are waited for. All on one connection, since the pool may have no other.
 * Gives nothing if it is not wanted any more.
 */
export async function claim(
  database: Database,
  consumer: string,
  owner: string,
  partitions: readonly TopicPartition[],
  { logger, graceMs, signal }: ClaimOptions,
): Promise<OwnedPartition[]> {
  const patienceEnds = performance.now() + graceMs + claimWaitMs;
  let epochs: Map<string, bigint> | undefined;
  while (epochs === undefined) {
    if (signal?.aborted === true) return [];
    const session = await database.connect();
    try {
      epochs = await countUp(session, consumer, owner, partitions);
      if (epochs === undefined && performance.now() > patienceEnds)
        await endEarlierOwners(session, consumer, partitions, logger);
      session.release();
    } catch (error) {
      session.release(true);
      throw error;
    }
  }
  // A statement of its own: it must see what the previous owner committed while the claim waited for it.
  return readPartitions(database, consumer, partitions, epochs);
}

/** Gives undefined, having changed nothing, if somebody is in the way for longer than a claim waits at a time. */
async function countUp(
  session: Queryable,
  consumer: string,
  owner: string,
  partitions: readonly TopicPartition[],
): Promise<Map<string, bigint> | undefined> {
  await session.query('begin');
  try {
    // Neither wait for ever, nor be waited for if this process is paused before the commit.
    await session.query(
      "select set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)",
      [String(claimWaitMs), String(5 * claimWaitMs)],
    );
    // In one order for everybody, so that two claims can't wait for each other.
    const { rows } = await session.query<{ topic: string; partition: number; epoch: string }>(
      `insert into turnout.assignment as a (consumer, topic, partition, epoch, owner, assigned_at)
       select $1, p.topic, p.partition, 1, $2, clock_timestamp()
         from jsonb_to_recordset($3::jsonb) as p (topic text, partition integer)
        order by p.topic, p.partition
       on conflict (consumer, topic, partition) do update
         set epoch = a.epoch + 1, owner = excluded.owner, assigned_at = excluded.assigned_at
       returning topic, partition, epoch::text as epoch`,
      [consumer, owner, JSON.stringify(partitions.map(({ topic, partition }) => ({ topic, partition })))],
    );
    await session.query('commit');
    return new Map(rows.map((row) => [`${row.topic}/${row.partition}`, BigInt(row.epoch)]));
  } catch (error) {
    await session.query('rollback').catch(() => undefined);
    if (sqlStateOf(error) === '55P03') return undefined;
    throw error;
  }
}

/** Ends the backends whose transactions have passed the fence of these partitions and are still open. */
async function endEarlierOwners(
  session: Queryable,
  consumer: string,
  partitions: readonly TopicPartition[],
  logger: Logger,
): Promise<void> {
  for (const { topic, partition } of partitions) {
    const fields = { consumer, topic, partition };
    try {
      const { rows } = await session.query<{ pid: number }>(
        `select l.pid, pg_terminate_backend(l.pid) as ended
           from pg_locks l
          where l.locktype = 'advisory' and l.classid = ${ownersLock} and l.objsubid = 2 and l.granted
            and l.objid::bigint = (hashtext(concat_ws('/', $1::text, $2::text, $3::integer))::bigint & 4294967295)
            and l.database = (select d.oid from pg_database d where d.datname = current_database())`,
        [consumer, topic, partition],
      );
      for (const { pid } of rows) {
        logger.warn('A transaction of an earlier owner of the partition did not end; its connection was closed.', {
          ...fields,
          pid,
        });
      }
      if (rows.length === 0) logger.warn('A partition can’t be claimed yet: its row is locked.', fields);
    } catch (error) {
      logger.warn(
        'A transaction of an earlier owner of the partition does not end, and its connection can’t be closed.',
        { ...fields, error },
      );
    }
  }
}

function sqlStateOf(error: unknown): unknown {
  if (typeof error !== 'object' || error === null) return undefined;
  const { code, driverError } = error as { code?: unknown; driverError?: unknown };
  return driverError === undefined ? code : sqlStateOf(driverError);
}

async function readPartitions(
  database: Database,
  consumer: string,
  partitions: readonly TopicPartition[],
  epochs: ReadonlyMap<string, bigint>,
): Promise<OwnedPartition[]> {
  interface Row {
    topic: string;
    partition: number;
    next_offset: string;
    since: string;
    sequences: { source: string; generation: number; base: string; last: string }[] | null;
  }
  const { rows } = await database.query<Row>(
    `select p.topic, p.partition, p.next_offset::text as next_offset, p.since::text as since,
            (select json_agg(json_build_object('source', s.source, 'generation', s.generation, 'base', s.base::text, 'last', s.last::text))
               from turnout.consumed_sequence s
              where s.consumer = p.consumer and s.topic = p.topic and s.partition = p.partition) as sequences
       from turnout.position p
       join jsonb_to_recordset($2::jsonb) as w (topic text, partition integer) on w.topic = p.topic and w.partition = p.partition
      where p.consumer = $1`,
    [consumer, JSON.stringify(partitions.map(({ topic, partition }) => ({ topic, partition })))],
  );
  return rows.map((row) => ({
    consumer,
    topic: row.topic,
    partition: row.partition,
    epoch: epochs.get(`${row.topic}/${row.partition}`)!,
    next: BigInt(row.next_offset),
    since: BigInt(row.since),
    sequences: new Map(
      (row.sequences ?? []).map(({ source, generation, base, last }) => [
        source,
        { generation, base: BigInt(base), last: BigInt(last) },
      ]),
    ),
  }));
}

/** How far a partition is to be moved, together with what an event does. */
export interface Advance {
  readonly next: bigint;
  /** Sequences that have changed, by source. */
  readonly sequences: ReadonlyMap<string, SequenceState>;
  readonly alarms: readonly Alarm[];
}

export interface Alarm {
  readonly kind: 'sequence-hole' | 'unknown-repeat' | 'halted' | 'uncertain';
  readonly detail: Readonly<Record<string, unknown>>;
}

/** What else is to be known about the event, read with the same statement. */
export interface Question {
  readonly effectKey: string;
  readonly source: string;
  /** The key whose held events hold this one up; null if it has none. */
  readonly key: string | null;
  readonly hasNumber: boolean;
}

export interface Standing {
  /** Whether a held event of the key comes first. */
  readonly blocked: boolean;
  /** Why this very event is held, if it is. */
  readonly held: HoldReason | undefined;
}

/**
 * The fence: a shared lock on the assignment row, which holds off a new owner until this transaction ends, and the check
 * of its epoch. An advisory lock beside it tells a claim which transactions those are. Position and sequences move in the same statement. Throws TURNOUT_PARTITION_FENCED, having changed nothing.
 */
export async function advance(
  tx: Queryable,
  owned: OwnedPartition,
  { next, sequences, alarms }: Advance,
  question?: Question,
): Promise<Standing> {
  const { consumer, topic, partition, epoch } = owned;
  const counted = [...sequences].map(([source, { generation, base, last }]) => ({
    source,
    generation,
    base: base.toString(),
    last: last.toString(),
  }));
  const { rows } = await tx.query<{ owned: boolean; blocked: boolean; held: HoldReason | null }>(
    `with fence as (
       select consumer, topic, partition, pg_advisory_xact_lock_shared(${ownersLock}, hashtext(concat_ws('/', consumer, topic, partition)))
         from turnout.assignment
        where consumer = $1 and topic = $2 and partition = $3 and epoch = $4::bigint
          for share
     ), moved as (
       update turnout.position p set next_offset = $5::bigint, updated_at = clock_timestamp()
         from fence f
        where p.consumer = f.consumer and p.topic = f.topic and p.partition = f.partition
     ), counted as (
       insert into turnout.consumed_sequence as c (consumer, topic, partition, source, generation, base, last)
       select f.consumer, f.topic, f.partition, s.source, s.generation, s.base, s.last
         from fence f, jsonb_to_recordset($6::jsonb) as s (source text, generation integer, base bigint, last bigint)
       on conflict (consumer, topic, partition, source) do update
         set generation = excluded.generation, base = excluded.base, last = excluded.last
     ), alarmed as (
       insert into turnout.alarm (consumer, kind, detail)
       select f.consumer, a.kind, a.detail from fence f, jsonb_to_recordset($7::jsonb) as a (kind text, detail jsonb)
     )
     select exists (select from fence) as owned,
            exists (select from turnout.held b left join turnout.gate g using (consumer, source, topic, key)
                     where b.consumer = $1 and b.source = $8 and b.topic = $2 and b.key = $9 and ${isInTheWay('$11::boolean')}) as blocked,
            (select h.reason from turnout.held h where h.consumer = $1 and h.effect_key = $10) as held`,
    [
      consumer,
      topic,
      partition,
      epoch.toString(),
      next.toString(),
      JSON.stringify(counted),
      JSON.stringify(alarms),
      question?.source ?? null,
      question?.key ?? null,
      question?.effectKey ?? null,
      question?.hasNumber ?? false,
    ],
  );
  const row = rows[0]!;
  if (!row.owned) {
    throw new TurnoutError('TURNOUT_PARTITION_FENCED', `Partition ${partition} of topic ${topic} has a new owner.`, {
      details: { consumer, topic, partition, epoch },
    });
  }
  return { blocked: row.blocked, held: row.held ?? undefined };
}

/** What owners have noted of the event that one of them begins with. */
export interface Begun {
  /** How many of them have begun with it and never told how it ended, this one included. */
  readonly begun: number;
  /** How often its handler has failed. */
  readonly failed: number;
}

/**
 * Notes which event the owner begins with. An event that ends the process is always the first one after a restart.
 * Throws TURNOUT_PARTITION_FENCED.
 */
export async function countBegun(
  database: Queryable,
  { consumer, topic, partition, epoch }: OwnedPartition,
  offset: bigint,
): Promise<Begun> {
  const { rows } = await database.query<Begun>(
    `update turnout.assignment
        set begun = case when begun_offset = $5::bigint then begun + 1 else 1 end,
            failed = case when begun_offset = $5::bigint then failed else 0 end,
            begun_offset = $5::bigint
      where consumer = $1 and topic = $2 and partition = $3 and epoch = $4::bigint
      returning begun, failed`,
    [consumer, topic, partition, epoch.toString(), offset.toString()],
  );
  const row = rows[0];
  if (row === undefined) {
    throw new TurnoutError('TURNOUT_PARTITION_FENCED', `Partition ${partition} of topic ${topic} has a new owner.`, {
      details: { consumer, topic, partition, epoch },
    });
  }
  return row;
}

/**
 * Notes that the process has survived an attempt: takes back what {@link countBegun} noted (`counted`), and keeps how often
 * the handler has failed by now. Also for one that is the owner no more. Waits for nobody; gives whether it could.
 */
export async function noteSurvived(
  database: Queryable,
  { consumer, topic, partition, epoch }: OwnedPartition,
  { offset, counted, failed }: { readonly offset: bigint; readonly counted: boolean; readonly failed: number },
): Promise<boolean> {
  const { rows } = await database.query(
    `update turnout.assignment a
        set begun = case when f.same then greatest(a.begun - $6::integer, 0) else 0 end,
            failed = case when f.same then greatest(a.failed, $7::integer) else $7::integer end,
            begun_offset = $5::bigint
       from (select consumer, topic, partition, begun_offset is not distinct from $5::bigint as same
               from turnout.assignment
              where consumer = $1 and topic = $2 and partition = $3 and (epoch = $4::bigint or begun_offset = $5::bigint)
                for no key update skip locked) f
      where a.consumer = f.consumer and a.topic = f.topic and a.partition = f.partition
      returning a.partition`,
    [consumer, topic, partition, epoch.toString(), offset.toString(), counted ? 1 : 0, failed],
  );
  return rows.length === 1;
}

export async function raiseAlarm(database: Queryable, consumer: string, alarm: Alarm): Promise<void> {
  await database.query('insert into turnout.alarm (consumer, kind, detail) values ($1, $2, $3::jsonb)', [
    consumer,
    alarm.kind,
    JSON.stringify(alarm.detail),
  ]);
}

/** Whether an effect is known: it has an outcome or an intent, or is held. It is looked for where apply() looks. */
export async function isKnown(
  database: Queryable,
  consumer: string,
  effectKey: string,
  occurredAt: Date,
): Promise<boolean> {
  const { rows } = await database.query<{ known: boolean }>(
    `select exists (select from turnout.inbox i
                     where i.consumer = $1 and i.effect_key = $2
                       and i.occurred_at between $3::timestamptz - interval '1 day' and $3::timestamptz + interval '1 day')
         or exists (select from turnout.held h where h.consumer = $1 and h.effect_key = $2) as known`,
    [consumer, effectKey, occurredAt.toISOString()],
  );
  return rows[0]!.known;
}

/** Whether an operator has said, by turnout.accept_repeat, that an event is to have its effect although it may be a repeat. */
export async function isAccepted(database: Queryable, consumer: string, effectKey: string): Promise<boolean> {
  const { rows } = await database.query<{ accepted: boolean }>(
    `select exists (select from turnout.alarm a
                     where a.consumer = $1 and a.kind = 'unknown-repeat'
                       and a.detail ->> 'effectKey' = $2 and a.detail ->> 'accepted' = 'apply') as accepted`,
    [consumer, effectKey],
  );
  return rows[0]!.accepted;
}
