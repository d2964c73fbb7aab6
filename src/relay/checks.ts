import { TurnoutError } from '../errors/index.ts';
import { failpoint } from '../lifecycle/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import type { Session } from '../database/index.ts';
import { decodeEnvelope } from '../event/index.ts';
import { countOf } from './numbers.ts';
import type { LastRecord, Publisher } from './publisher.ts';
import { beginning } from './tick-store.ts';
import type { Tick } from './tick-store.ts';

/** What the database says of sources and topics. */
export interface Catalogue {
  /** Recorded partition counts by topic. */
  readonly partitions: ReadonlyMap<string, number>;
  /** Generations by source. */
  readonly generations: ReadonlyMap<string, number>;
}

export async function loadCatalogue(session: Session): Promise<Catalogue> {
  const topics = await session.queryText('select t.name, t.partitions from turnout.topic t');
  const sources = await session.queryText('select s.name, s.generation from turnout.source s');
  return {
    partitions: new Map(topics.map(([name, partitions]) => [name!, Number(partitions)])),
    generations: new Map(sources.map(([name, generation]) => [name!, Number(generation)])),
  };
}

/** Throws TURNOUT_SEQUENCE_CACHED: sessions that draw blocks of numbers lose the order of a key. */
export async function checkSequence(session: Session): Promise<void> {
  if (failpoint('relay.accept-sequence-cache')) return;
  const [row] = await session.queryText(
    `select s.seqcache from pg_sequence s where s.seqrelid = 'turnout.outbox_seq_seq'::regclass`,
  );
  const cache = Number(row?.[0]);
  if (cache === 1) return;
  throw new TurnoutError('TURNOUT_SEQUENCE_CACHED', `The sequence of turnout.outbox caches ${cache} numbers.`, {
    details: { cache },
  });
}

/**
 * Compares recorded partition counts with the broker's. Throws TURNOUT_PARTITIONS_MISMATCH. A topic that is missing is only
 * logged: `turnout topics apply` may still be on its way, and until one of its events is due the others can go on.
 */
export async function checkTopics(
  publisher: Publisher,
  partitions: ReadonlyMap<string, number>,
  logger: Logger,
): Promise<void> {
  const names = [...partitions.keys()];
  const counts = names.length === 0 ? new Map<string, number>() : await publisher.partitionCounts(names);
  const missing = names.filter((name) => !counts.has(name));
  if (missing.length > 0)
    logger.warn('Topics are missing at the broker; their events will wait. Run `turnout topics apply`.', {
      topics: missing,
    });
  for (const [topic, recorded] of partitions) {
    const actual = counts.get(topic);
    if (actual === undefined || actual === recorded) continue;
    throw new TurnoutError(
      'TURNOUT_PARTITIONS_MISMATCH',
      `Topic ${topic} has ${actual} partitions and is recorded with ${recorded}.`,
      {
        details: { topic, recorded, actual },
      },
    );
  }
}

// The newest tick was written by a transaction behind its snapshot, whose number (32 bits of it) the row keeps. One that was written again
// by a lower one came here by a copy. What Turnout wrote to begin with has no snapshot to compare.
const ofOtherCluster = `pg_snapshot_xmax(t.hi) > pg_snapshot_xmax(pg_current_snapshot())
  or (t.hi::text <> '${beginning}'
    and (t.xmin::text::bigint - pg_snapshot_xmax(t.hi)::text::bigint % 4294967296 + 4294967296) % 4294967296 >= 2147483648)`;

/**
 * Throws TURNOUT_DATABASE_REWOUND if ticks or events carry transaction numbers of another cluster (pg_dump and restore, logical
 * replication) that this one has not reached: what is published here would seem to be visible already, and be passed over.
 */
export async function checkTransactions(session: Session): Promise<void> {
  const [row] = await session.queryText(
    `select pg_snapshot_xmax(pg_current_snapshot()),
      exists (select from turnout.relay_tick t
        where t.shard = 0 and t.tick = (select max(n.tick) from turnout.relay_tick n where n.shard = 0) and (${ofOtherCluster})),
      exists (select from turnout.outbox o where o.xid >= pg_snapshot_xmax(pg_current_snapshot()))`,
  );
  const [next, ticks, events] = row ?? [];
  if (ticks !== 't' && events !== 't') return;
  throw new TurnoutError(
    'TURNOUT_DATABASE_REWOUND',
    `The ${ticks === 't' ? 'newest tick' : 'outbox'} carries transaction numbers of another cluster, from which this database was copied (pg_dump, logical replication): this one is at ${next}.`,
    { details: { transaction: next, in: ticks === 't' ? 'turnout.relay_tick' : 'turnout.outbox' } },
  );
}

/**
 * Throws TURNOUT_DATABASE_REWOUND if a topic holds events that this database has not given out: ticks and data go back
 * together when a database is restored, or promoted without its last transactions, and Kafka doesn't.
 *
 * Two looks at the last record of each partition that is of one of our sources and of its present generation:
 * - its number, always: at most what was counted before the newest tick, or else the event is in that tick;
 * - its id, when this is another server or timeline than last time: it is in the outbox, unless it is older than retention.
 */
export async function checkRewound(
  session: Session,
  options: {
    publisher: Publisher;
    catalogue: Catalogue;
    newest: Tick | undefined;
    retentionMs: number;
    logger: Logger;
  },
): Promise<void> {
  const { publisher, catalogue, newest, logger } = options;
  const moved = await isAnotherServer(session, logger);
  const topics = [...catalogue.partitions.keys()];
  if (topics.length > 0) {
    const records = await publisher.lastRecords(topics);
    const unread = records.filter(({ message }) => message === undefined);
    if (unread.length > 0) {
      const partitions = unread.map(({ topic, partition }) => `${topic}/${partition}`);
      logger.warn('The last records of some partitions can’t be read in time: they are not compared with the outbox.', {
        partitions,
      });
    }
    const found = findings(
      records,
      catalogue,
      newest,
      Date.now() - options.retentionMs,
      ({ topic, partition, error }) =>
        logger.warn('A record with the name of this source can’t be read, and is not compared with the outbox.', {
          topic,
          partition,
          error,
        }),
    );
    const inTick = found.filter((finding) => finding.aboveCounts);
    await requireAll(session, inTick, newest);
    if (moved)
      await requireAll(
        session,
        found.filter((finding) => !finding.aboveCounts && finding.kept),
        undefined,
      );
  }
  await rememberServer(session);
}

/** What is known of a partition's last record. */
export interface Finding {
  readonly topic: string;
  readonly partition: number;
  readonly id: string;
  readonly seq: bigint;
  /** Its number is above what was counted before the newest tick. */
  readonly aboveCounts: boolean;
  /** It is younger than retention, so that its row must still be there. */
  readonly kept: boolean;
}

/** The last records that say something about this database: those of its own sources, in their present generation. */
export function findings(
  records: readonly LastRecord[],
  catalogue: Catalogue,
  newest: Tick | undefined,
  keptSince: number,
  unreadable: (record: { topic: string; partition: number; error: unknown }) => void,
): Finding[] {
  return records.flatMap(({ topic, partition, message }) => {
    if (message === undefined) return [];
    const source = message.headers['ce_source'] ?? '';
    const generation = catalogue.generations.get(source);
    // Written by another database's relay, or by something that isn't Turnout: it says nothing about this database.
    if (generation === undefined) return [];
    let envelope;
    try {
      // Its headers only: a tool that writes a tombstone may copy them.
      envelope = decodeEnvelope(topic, { ...message, value: message.value ?? Buffer.alloc(0) });
    } catch (error) {
      unreadable({ topic, partition, error });
      return [];
    }
    const { id, seq, sequence, time } = envelope;
    if (sequence === undefined || seq === undefined || sequence.generation < generation) return [];
    const aboveCounts = sequence.number > countOf(newest?.numbers ?? {}, source, sequence.generation, topic, partition);
    return [{ topic, partition, id, seq, aboveCounts, kept: time.getTime() >= keptSince }];
  });
}

/** With a tick: its rows are looked at only, by the index on xid. Without: all partitions of the outbox that the places fall into. */
async function requireAll(session: Session, wanted: readonly Finding[], tick: Tick | undefined): Promise<void> {
  if (wanted.length === 0) return;
  const seqs = `{${wanted.map(({ seq }) => seq).join(',')}}`;
  const inTick =
    tick === undefined
      ? ''
      : 'and o.xid >= pg_snapshot_xmin($2::pg_snapshot) and o.xid < pg_snapshot_xmax($3::pg_snapshot)';
  const rows = await session.queryText(
    `select o.id from turnout.outbox o where o.seq = any ($1::bigint[]) ${inTick}`,
    tick === undefined ? [seqs] : [seqs, tick.lo, tick.hi],
  );
  const there = new Set(rows.map(([id]) => id));
  const unknown = wanted.find(({ id }) => !there.has(id));
  if (unknown === undefined) return;
  const { topic, partition, id, seq } = unknown;
  throw new TurnoutError(
    'TURNOUT_DATABASE_REWOUND',
    `The last event of topic ${topic}, partition ${partition} (id ${id}, seq ${seq}) is not in this outbox.`,
    { details: { topic, partition, id, seq: seq.toString() } },
  );
}

const server = `select c.system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer from pg_control_system() c`;

async function isAnotherServer(session: Session, logger: Logger): Promise<boolean> {
  const [now] = await session.queryText(server);
  const [before] = await session.queryText(
    'select s.system_identifier, s.timeline from turnout.relay_shard s where s.shard = 0',
  );
  if (before === undefined) return true;
  if (before[0] === now?.[0] && before[1] === now?.[1]) return false;
  logger.warn(
    'The database is another server or timeline than last time (a restore or a promotion); its outbox is compared with the topics.',
    {
      before: `${before[0]}/${before[1]}`,
      now: `${now?.[0]}/${now?.[1]}`,
    },
  );
  return true;
}

/** Only after the comparison: a relay that halts must compare again when it is started again. */
async function rememberServer(session: Session): Promise<void> {
  await session.queryText(
    `insert into turnout.relay_shard as s (shard, system_identifier, timeline)
      select 0, now.* from (${server}) now (system_identifier, timeline)
      on conflict (shard) do update set system_identifier = excluded.system_identifier, timeline = excluded.timeline, updated_at = clock_timestamp()
      where (s.system_identifier, s.timeline) <> (excluded.system_identifier, excluded.timeline)`,
  );
}
