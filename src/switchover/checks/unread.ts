// How old the oldest event is that was published and not read. The relay's ticks hold how many events each partition had been given when
// they began; what the consumer has read is held against that. In small queries: one large one is compiled by PostgreSQL for seconds.
import type { Queryable } from '../../database/index.ts';
import type { ConsumedSequence } from './evidence.ts';

/** A partition as one generation of a source counts it. */
interface Unread {
  readonly partition: number;
  readonly sequence: bigint;
}

interface Published {
  readonly tick: string;
  readonly counts: readonly number[];
}

/**
 * How old the oldest event is that was published and that the consumer has not read, in milliseconds, by the clock of the producer's
 * database; 0: it has read all. For every partition that anything was published to. A partition that was never read counts from
 * the beginning, or from `withinMs` ago: a consumer that started at the end of a topic does not owe what was there before. Undefined
 * if nothing can be told. At most 20,000 ticks are looked at: an older event than these has the age of the last of them.
 */
export async function unreadMs(
  database: Queryable,
  source: string,
  topic: string,
  consumed: readonly ConsumedSequence[],
  { withinMs }: { readonly withinMs?: number } = {},
): Promise<number | undefined> {
  const mine = consumed.filter((each) => each.source === source && each.topic === topic);
  const { rows } = await database.query<{ generation: number; tick: string }>(
    `select s.generation, t.tick::text as tick
       from turnout.source s, (select t.tick from turnout.relay_tick t where t.shard = 0 order by t.tick desc limit 1) t
      where s.name = $1`,
    [source],
  );
  const [newest] = rows;
  if (newest === undefined) return undefined;
  const oldest = BigInt(newest.tick) - 20_000n;
  const ages: number[] = [];
  // Ticks of a generation keep nothing of the ones before, which may not be read to their end.
  for (
    let generation = Math.min(newest.generation, ...mine.map((each) => each.generation));
    generation <= newest.generation;
    generation++
  ) {
    const looked = { database, counted: `${source}/${generation}`, topic, oldest };
    const published = await publishedIn(looked);
    if (published === undefined) continue;
    const read = (partition: number, fallback: number): bigint => {
      const known = mine.find((each) => each.partition === partition);
      if (known === undefined) return BigInt(fallback);
      if (known.generation > generation) return BigInt(published.counts[partition]!);
      return known.generation === generation ? BigInt(known.sequence) : 0n;
    };
    const neverRead = published.counts.some((_, partition) => !mine.some((each) => each.partition === partition));
    const before = neverRead && withinMs !== undefined ? await countsAt(looked, published.tick, withinMs) : [];
    const unread = published.counts
      .map((count, partition) => ({
        partition,
        count: BigInt(count),
        sequence: read(partition, before[partition] ?? 0),
      }))
      .filter(({ count, sequence }) => count > sequence);
    ages.push(unread.length === 0 ? 0 : await ageOf(looked, published.tick, unread));
  }
  return ages.length === 0 ? (mine.length === 0 ? undefined : 0) : Math.max(...ages);
}

interface Looked {
  readonly database: Queryable;
  /** As `numbers` of a tick names it: source and generation. */
  readonly counted: string;
  readonly topic: string;
  /** Ticks up to this one are not looked at. */
  readonly oldest: bigint;
}

/** The newest counts of a generation. */
async function publishedIn({ database, counted, topic, oldest }: Looked): Promise<Published | undefined> {
  const { rows } = await database.query<{ tick: string; counts: string | null }>(
    `select t.tick::text as tick, (t.numbers -> $1 -> $2)::text as counts from turnout.relay_tick t
      where t.shard = 0 and t.tick > $3::bigint and t.numbers ? $1 order by t.tick desc limit 1`,
    [counted, topic, String(oldest)],
  );
  const counts = rows[0]?.counts;
  return counts === undefined || counts === null
    ? undefined
    : { tick: rows[0]!.tick, counts: JSON.parse(counts) as number[] };
}

/** What had been published so long ago, or as far back as is kept. */
async function countsAt({ database, counted, topic, oldest }: Looked, upTo: string, agoMs: number): Promise<number[]> {
  const { rows } = await database.query<{ counts: string | null }>(
    `select (t.numbers -> $1 -> $2)::text as counts from turnout.relay_tick t
      where t.shard = 0 and t.tick = coalesce(
        (select b.tick from turnout.relay_tick b
          where b.shard = 0 and b.tick > $3::bigint and b.tick <= $4::bigint and b.at <= clock_timestamp() - $5::float8 * interval '1 ms'
          order by b.tick desc limit 1),
        (select b.tick from turnout.relay_tick b where b.shard = 0 and b.tick > $3::bigint order by b.tick limit 1))`,
    [counted, topic, String(oldest), upTo, agoMs],
  );
  return JSON.parse(rows[0]?.counts ?? '[]') as number[];
}

/** Counts only grow, so the newest tick in which none was above what was read is that of the oldest unread event. */
async function ageOf(
  { database, counted, topic, oldest }: Looked,
  upTo: string,
  unread: readonly Unread[],
): Promise<number> {
  const { rows } = await database.query<{ ms: number }>(
    `select extract(epoch from clock_timestamp() - coalesce(
        (select t.at from turnout.relay_tick t
          where t.shard = 0 and t.tick > $3::bigint and t.tick <= $4::bigint
            and not exists (select from jsonb_to_recordset($5::jsonb) as u (partition integer, sequence bigint)
                             where coalesce((t.numbers -> $1 -> $2 ->> u.partition)::bigint, 0) > u.sequence)
          order by t.tick desc limit 1),
        (select t.at from turnout.relay_tick t where t.shard = 0 and t.tick > $3::bigint order by t.tick limit 1)))::float8 * 1000 as ms`,
    [
      counted,
      topic,
      String(oldest),
      upTo,
      JSON.stringify(unread.map(({ partition, sequence }) => ({ partition, sequence: String(sequence) }))),
    ],
  );
  return rows[0]!.ms;
}
