// Publishers that do everything that makes reading an outbox hard. Each event is noted, in the same transaction, in
// reading.committed with its place in the order of its key's locks: what is in that table when all is over was committed.
import { Client } from 'pg';
import { between, random } from './random.ts';

export const source = 'reading';

/** What a transaction does. */
export type Kind = 'commit' | 'rollback' | 'savepoint' | 'prepared' | 'early-xid' | 'long' | 'bulk' | 'unkeyed';

export type Mix = Readonly<Partial<Record<Kind, number>>>;

/** Shares of the kinds, in no unit. */
export const everything: Mix = {
  commit: 50,
  rollback: 8,
  savepoint: 10,
  prepared: 7,
  'early-xid': 12,
  long: 4,
  bulk: 2,
  unkeyed: 7,
};

export interface WritersOptions {
  readonly url: string;
  readonly topic: string;
  readonly seed: number;
  /** Stop once this many events are committed. */
  readonly events: number;
  readonly connections: number;
  readonly keys: number;
  readonly mix: Mix;
  readonly onProgress?: (committed: number) => void;
}

export interface Written {
  readonly committed: number;
  /** How many transactions of each kind were made, and `deadlock` for those that Postgres ended. */
  readonly transactions: Readonly<Record<string, number>>;
}

/** Makes what the writers need besides Turnout's own tables. */
export async function prepareReading(url: string, topic: string, partitions: number): Promise<void> {
  await withClient(url, async (client) => {
    await client.query(`
      create schema reading;
      create table reading.committed (event_id uuid primary key, key text, n bigint);
      create unique index on reading.committed (key, n)`);
    const event = (name: string, ordering: string) => ({ name, version: 1, topic, aggregate: 'reading', ordering });
    await client.query('select turnout.register_events($1, $2, $3)', [
      source,
      JSON.stringify([{ name: topic, partitions }]),
      JSON.stringify([event('reading.keyed', 'key'), event('reading.unkeyed', 'none')]),
    ]);
  });
}

/** Publishes with many connections at once until enough is committed; resolves when no transaction is open any more. */
export async function runWriters(options: WritersOptions): Promise<Written> {
  const state = { committed: 0, transactions: {} as Record<string, number>, ended: new Set<Promise<void>>() };
  const count = (kind: string): void => void (state.transactions[kind] = (state.transactions[kind] ?? 0) + 1);
  const committed = (events: number): void => {
    state.committed += events;
    options.onProgress?.(state.committed);
  };
  const resolver = await connected(options.url);
  let gids = 0;

  async function writer(index: number): Promise<void> {
    const next = random(options.seed * 1_000 + index);
    const client = await connected(options.url);
    try {
      while (state.committed < options.events) {
        const kind = pick(options.mix, next());
        try {
          await transaction(client, kind, next);
          count(kind);
        } catch (error) {
          if ((error as { code?: string }).code !== '40P01') throw error;
          count('deadlock');
          await client.query('rollback');
        }
      }
    } finally {
      await client.end();
    }
  }

  async function transaction(client: Client, kind: Kind, next: () => number): Promise<void> {
    await client.query('begin');
    let events = 0;
    const publish = async (times = 1, key: string | null = keyOf(options.keys, next)): Promise<number> => {
      await publishEvents(client, key, times, next);
      return times;
    };
    switch (kind) {
      case 'commit':
        for (let n = between(next, 1, 4); n > 0; n--) events += await publish();
        break;
      case 'unkeyed':
        for (let n = between(next, 1, 4); n > 0; n--) events += await publish(1, null);
        break;
      case 'bulk':
        events += await publish(between(next, 50, 200));
        break;
      case 'rollback':
        await publish(between(next, 1, 3));
        await client.query('rollback');
        return;
      case 'savepoint':
        events += await publish();
        await client.query('savepoint one');
        await publish();
        await client.query('savepoint two');
        await publish();
        await client.query(next() < 0.5 ? 'rollback to one' : 'rollback to two');
        if (next() < 0.5) {
          await client.query('rollback to one');
        } else {
          await client.query('rollback to one; release one; savepoint three');
          events += await publish();
          await client.query('release three');
        }
        events += await publish();
        break;
      case 'early-xid':
        // Its number is old when its events come: they are below what was read already, by xid and not by seq.
        await client.query('select pg_current_xact_id()');
        await pause(between(next, 5, 250));
        events += await publish();
        break;
      case 'long':
        // Its seq is old when it commits.
        events += await publish();
        await pause(between(next, 300, 2_500));
        events += await publish();
        break;
      case 'prepared': {
        events += await publish(between(next, 1, 3));
        const gid = `reading_${++gids}`;
        await client.query(`prepare transaction '${gid}'`);
        const [waitMs, commits] = [between(next, 0, 800), next() < 0.75];
        // By a connection that never waits for a lock: the writers may all be waiting for this transaction's.
        const ended = pause(waitMs)
          .then(() => resolver.query(`${commits ? 'commit' : 'rollback'} prepared '${gid}'`))
          .then(() => {
            if (commits) committed(events);
          });
        state.ended.add(ended);
        return;
      }
    }
    await client.query('commit');
    committed(events);
  }

  try {
    await Promise.all(Array.from({ length: options.connections }, (_, index) => writer(index)));
    await Promise.all(state.ended);
  } finally {
    await resolver.end();
  }
  return { committed: state.committed, transactions: state.transactions };
}

/** Publishes, and then notes the events: once the key's lock is held, the highest number that can be read is the last one's. */
async function publishEvents(client: Client, key: string | null, times: number, next: () => number): Promise<void> {
  const data = JSON.stringify({ text: 'x'.repeat(between(next, 10, 300)), at: next() });
  const { rows } = await client.query<{ id: string }>(
    'select turnout.publish($1, $2, 1, $3, $4) as id from generate_series(1, $5)',
    [source, key === null ? 'reading.unkeyed' : 'reading.keyed', key, data, times],
  );
  await client.query(
    `insert into reading.committed (event_id, key, n)
      select e.id, $2::text, case when $2::text is not null then coalesce((select max(c.n) from reading.committed c where c.key = $2::text), 0) + e.place end
      from unnest($1::uuid[]) with ordinality as e (id, place)`,
    [rows.map(({ id }) => id), key],
  );
}

function keyOf(keys: number, next: () => number): string {
  // Some keys are hot, as in life.
  return `key-${Math.floor(next() ** 2 * keys)}`;
}

function pick(mix: Mix, dice: number): Kind {
  const entries = Object.entries(mix) as [Kind, number][];
  let left = dice * entries.reduce((sum, [, share]) => sum + share, 0);
  for (const [kind, share] of entries) if ((left -= share) < 0) return kind;
  return 'commit';
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function connected(url: string): Promise<Client> {
  const client = new Client({ connectionString: url });
  await client.connect();
  return client;
}

async function withClient(url: string, work: (client: Client) => Promise<unknown>): Promise<void> {
  const client = await connected(url);
  try {
    await work(client);
  } finally {
    await client.end();
  }
}
