import { connect, createServer } from 'node:net';
import type { Socket } from 'node:net';
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { afterEach, describe, expect, onTestFinished, test } from 'vitest';
import { kafkaJsPublisher, kafkaJsTopics } from '../../adapters/kafkajs/index.ts';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { migrate } from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Logger } from '../../src/lifecycle/index.ts';
import { silentLogger } from '../../src/lifecycle/index.ts';
import type { Publisher } from '../../src/relay/index.ts';
import { createRelay, outboxKeeper } from '../../src/relay/index.ts';
import type { Relay, RelayEvent, RelayOptions } from '../../src/relay/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import type { InMemoryBroker } from '../../src/testing/index.ts';
import { freePort, spawnNode, startKafka, uniqueName, waitFor } from '../support/index.ts';
import { producerTemplate } from '../support/producer.ts';
import { hammer } from '../support/service-stress.ts';
import { readTopic } from '../support/topic-reader.ts';
import type { StoredMessage } from '../support/topic-reader.ts';
import { database, sharedKafka } from '../support/vitest.ts';

/** A producer with a topic of three partitions. */
async function producer(topic = uniqueName('orders'), partitions = 3) {
  const created = await database({ template: producerTemplate });
  const { url } = created;
  const pool = created.pool();
  const type = (name: string, ordering: string) => ({ name, version: 1, topic, aggregate: 'orders', ordering });
  await pool.query(`select turnout.register_events('orders', $1, $2)`, [
    JSON.stringify([{ name: topic, partitions }]),
    JSON.stringify([type('orders.keyed', 'key'), type('orders.unkeyed', 'none')]),
  ]);
  return {
    pool,
    url,
    topic,
    partitions,
    async publish(
      count: number,
      more: { key?: string; text?: string; on?: Pick<Pool, 'query'> } = {},
    ): Promise<string[]> {
      const { rows } = await (more.on ?? pool).query<{ id: string }>(
        `select turnout.publish('orders', 'orders.keyed', 1, coalesce($2, 'order-' || (n % 20)), json_build_object('n', n, 'text', $3::text)) as id
          from generate_series(1, $1::integer) n`,
        [count, more.key ?? null, more.text ?? ''],
      );
      return rows.map(({ id }) => id);
    },
    ticks: async () =>
      (
        await pool.query<{ tick: string; lo: string; hi: string; after_seq: string; relay: string }>(
          'select t.tick::text, t.lo::text, t.hi::text, t.after_seq::text, t.relay from turnout.relay_tick t order by t.tick',
        )
      ).rows,
  };
}

/** A way to the database on which, when told to, what is under way is swallowed for ever; new connections go through. Changes `address` to lead there. */
async function swallowingLine(address: URL) {
  const to = { host: address.hostname, port: Number(address.port || '5432') };
  const open = new Set<Socket>();
  const server = createServer((from) => {
    const socket = connect(to);
    for (const each of [from, socket]) {
      open.add(each);
      each.on('error', () => undefined);
      each.on('close', () => open.delete(each));
    }
    from.pipe(socket).pipe(from);
  });
  address.port = String(await freePort());
  address.hostname = '127.0.0.1';
  await new Promise<void>((resolve) => server.listen(Number(address.port), '127.0.0.1', resolve));
  return {
    swallow: () => {
      for (const socket of open) socket.unpipe().pause();
    },
    close: () => {
      for (const socket of open) socket.destroy();
      server.close();
    },
  };
}

type Producer = Awaited<ReturnType<typeof producer>>;

const running: Relay[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((relay) => relay.stop()));
});

interface Watched {
  readonly relay: Relay;
  readonly events: RelayEvent[];
  readonly log: string[];
}

function relayOf({ pool }: Pick<Producer, 'pool'>, publisher: Publisher, options: Partial<RelayOptions> = {}): Watched {
  const events: RelayEvent[] = [];
  const log: string[] = [];
  const note = (message: string): void => void log.push(message);
  const logger: Logger = { info: note, warn: note, error: note };
  const relay = createRelay({
    database: pgDatabase(pool),
    publisher,
    logger,
    onEvent: (event) => events.push(event),
    ...options,
  });
  running.push(relay);
  return { relay, events, log };
}

async function brokerFor({ topic, partitions }: Producer): Promise<InMemoryBroker> {
  const broker = inMemoryBroker({ maxMessageBytes: 20_000 });
  await broker.topics().create([{ name: topic, partitions }]);
  return broker;
}

const idsIn = (messages: readonly { headers: Readonly<Record<string, string>> }[]): string[] =>
  messages.map(({ headers }) => headers['ce_id'] ?? '');
const sequences = (
  messages: readonly { partition: number; headers: Readonly<Record<string, string>> }[],
  partition: number,
): (string | undefined)[] =>
  messages.filter((message) => message.partition === partition).map(({ headers }) => headers['ce_sequence']);
const dense = (count: number, generation = 1): string[] =>
  Array.from(
    { length: count },
    (_, index) => `${String(generation).padStart(6, '0')}-${String(index + 1).padStart(20, '0')}`,
  );

describe('publishing', () => {
  test('what was published before the first relay, in order and with dense numbers', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const ids = await orders.publish(100);
    const { relay } = relayOf(orders, broker.publisher());
    await relay.start();
    await waitFor(() => relay.counts().published === 100);
    const messages = broker.messages(orders.topic);
    expect(idsIn(messages).sort()).toEqual([...ids].sort());
    for (const partition of [0, 1, 2]) {
      const numbers = sequences(messages, partition);
      expect(numbers).toEqual(dense(numbers.length));
    }
  });

  test('a transaction that commits late, though later ones are long published', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const { relay } = relayOf(orders, broker.publisher());
    await relay.start();
    const late = await orders.pool.connect();
    await late.query('begin');
    const [lateId] = await orders.publish(1, { key: 'late', on: late as unknown as Pool });
    await orders.publish(5);
    await waitFor(() => relay.counts().published === 5);
    await late.query('commit');
    late.release();
    await waitFor(() => relay.counts().published === 6);
    expect(idsIn(broker.messages(orders.topic))).toContain(lateId);
  });

  test('nothing that was rolled back, by transaction or savepoint', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const client = await orders.pool.connect();
    await client.query('begin');
    await orders.publish(1, { on: client as unknown as Pool });
    await client.query('rollback');
    await client.query('begin');
    const [kept] = await orders.publish(1, { on: client as unknown as Pool });
    await client.query('savepoint one');
    await orders.publish(1, { on: client as unknown as Pool });
    await client.query('rollback to one');
    await client.query('commit');
    client.release();
    const { relay } = relayOf(orders, broker.publisher());
    await relay.start();
    await waitFor(() => relay.counts().published > 0);
    const [after] = await orders.publish(1);
    await waitFor(() => relay.counts().published === 2);
    expect(new Set(idsIn(broker.messages(orders.topic)))).toEqual(new Set([kept, after]));
  });

  test('a backlog of many pages through one cursor, with events of other transactions coming in', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const ids = await orders.publish(1_000);
    const { relay, events } = relayOf(orders, broker.publisher(), { pageSize: 30 });
    await relay.start();
    ids.push(...(await orders.publish(10)));
    await waitFor(() => relay.counts().published === 1_010);
    const messages = broker.messages(orders.topic);
    expect(idsIn(messages).sort()).toEqual([...ids].sort());
    for (const partition of [0, 1, 2])
      expect(sequences(messages, partition)).toEqual(dense(sequences(messages, partition).length));
    expect(events).toContainEqual({ kind: 'tick', tick: 1n, events: 1_000, replayed: false });
  });

  test('unkeyed events to the partition of their place', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    await orders.pool.query(
      `select turnout.publish('orders', 'orders.unkeyed', 1, null, '{}') from generate_series(1, 30)`,
    );
    const { relay } = relayOf(orders, broker.publisher());
    await relay.start();
    await waitFor(() => relay.counts().published === 30);
    for (const { partition, key, headers } of broker.messages(orders.topic)) {
      expect(key).toBeNull();
      expect(partition).toBe(Number(headers['turnout-seq']) % 3);
    }
  });

  test('nothing is written while nothing is published, and an idle relay closes its last tick', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const { relay } = relayOf(orders, broker.publisher());
    await relay.start();
    await orders.publish(1);
    await waitFor(async () => (await orders.ticks()).length === 2);
    const [, close] = await orders.ticks();
    expect(close?.lo).toBe(close?.hi);
    // Transactions elsewhere move the snapshots on; they make no ticks.
    for (let n = 0; n < 5; n++) await orders.pool.query('select pg_current_xact_id()');
    await orders.publish(1);
    await waitFor(() => relay.counts().published === 2);
    expect((await orders.ticks()).length).toBeLessThanOrEqual(4);
  });
});

describe('stopping and starting', () => {
  test('in order repeats nothing', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    await orders.publish(20);
    const first = relayOf(orders, broker.publisher());
    await first.relay.start();
    await waitFor(() => first.relay.counts().published === 20);
    await first.relay.stop();
    const second = relayOf(orders, broker.publisher());
    await second.relay.start();
    await orders.publish(1);
    await waitFor(() => second.relay.counts().published === 1);
    expect(broker.messages(orders.topic)).toHaveLength(21);
    expect(second.relay.counts().replayed).toBe(0);
  });

  test('in the middle of a long tick goes on from where it was left', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    await orders.publish(2_000);
    const inner = broker.publisher();
    const first = relayOf(orders, { ...inner, send: async (batches) => inner.send(batches) }, { pageSize: 20 });
    await first.relay.start();
    await waitFor(() => broker.messages(orders.topic).length > 100, { everyMs: 1 });
    await first.relay.stop();
    const sent = broker.messages(orders.topic).length;
    const second = relayOf(orders, broker.publisher());
    await second.relay.start();
    await waitFor(async () => (await orders.ticks()).at(-1)?.lo === (await orders.ticks()).at(-1)?.hi);
    const messages = broker.messages(orders.topic);
    expect(new Set(idsIn(messages)).size).toBe(2_000);
    expect(messages.length).toBe(2_000);
    if (sent < 2_000) expect(second.relay.counts().published).toBe(2_000 - sent);
  });

  test('may happen at any time and as often as one likes', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const { relay } = relayOf(orders, broker.publisher(), { logger: silentLogger });
    await hammer(relay, { rounds: 5 });
    await orders.publish(3);
    await relay.start();
    await waitFor(() => relay.counts().published >= 3);
    await relay.stop();
    const { rows } = await orders.pool.query(
      `select 1 from pg_stat_activity where datname = current_database() and application_name like 'turnout relay%'`,
    );
    expect(rows).toEqual([]);
  });
});

describe('a failing broker', () => {
  test.each([
    ['nothing of the failed send was written', false],
    ['only the answer was lost', true],
  ])('%s: the tick is replayed with the same numbers', async (_, written) => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    broker.failSends(2, { written });
    await orders.publish(50);
    const { relay, log } = relayOf(orders, broker.publisher());
    await relay.start();
    await waitFor(() => relay.counts().ticks === 1);
    const messages = broker.messages(orders.topic);
    const first = new Map<string, string>();
    for (const { partition, offset: _offset, ...message } of messages) {
      const content = JSON.stringify([partition, message]);
      const id = message.headers['ce_id']!;
      expect(first.get(id) ?? content).toBe(content);
      first.set(id, content);
    }
    expect(first.size).toBe(50);
    expect(messages.length > 50).toBe(written);
    expect(log.some((line) => line.startsWith('Publishing failed'))).toBe(true);
  });

  test('that is out of reach at start and later is waited for, with a log line, and nothing is lost', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    let back = broker.becomeUnreachable();
    const { relay, log } = relayOf(orders, broker.publisher());
    let started = false;
    const starting = relay.start().then(() => (started = true));
    await waitFor(() => log.some((line) => line.includes('waits and tries again')));
    expect(started).toBe(false);
    back();
    await starting;
    await orders.publish(3);
    await waitFor(() => relay.counts().published === 3);
    back = broker.becomeUnreachable();
    const ids = await orders.publish(4, { key: 'one' });
    await waitFor(() => log.some((line) => line.startsWith('Publishing failed')));
    back();
    await waitFor(() => relay.counts().published === 7);
    const published = broker.messages(orders.topic).filter(({ key }) => key === 'one');
    expect(idsIn(published)).toEqual(ids);
  });

  test('a message that it refuses for good is replaced by a placeholder with its number', async () => {
    const orders = await producer(undefined, 1);
    const broker = await brokerFor(orders);
    const [before] = await orders.publish(1, { key: 'k' });
    const [large] = await orders.publish(1, { key: 'k', text: 'x'.repeat(30_000) });
    const [after] = await orders.publish(1, { key: 'k' });
    const { relay, events } = relayOf(orders, broker.publisher());
    await relay.start();
    await waitFor(() => relay.counts().published === 3);
    const messages = broker.messages(orders.topic);
    const seen = [...new Map(messages.map((message) => [message.headers['ce_id'], message])).values()];
    expect(idsIn(seen)).toEqual([before, large, after]);
    expect(sequences(seen, 0)).toEqual(dense(3));
    expect(seen[1]?.headers['turnout-refused']).toMatch(/too large/);
    expect(seen[1]?.value?.toString()).toBe('null');
    expect(events).toContainEqual(expect.objectContaining({ kind: 'refused', id: large }));
  });

  test('a topic that is missing holds its events until it is there', async () => {
    const orders = await producer();
    const broker = inMemoryBroker();
    const { relay, log } = relayOf(orders, broker.publisher());
    await relay.start();
    expect(log).toContainEqual(expect.stringContaining('Topics are missing'));
    await orders.publish(2);
    await waitFor(() => log.some((line) => line.startsWith('Publishing failed')));
    await broker.topics().create([{ name: orders.topic, partitions: orders.partitions }]);
    await waitFor(() => relay.counts().published === 2);
  });
});

describe('a database that fails', () => {
  test('midway is connected again, and nothing is lost', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const { relay, events } = relayOf(orders, broker.publisher());
    await relay.start();
    await orders.publish(5);
    await waitFor(() => relay.counts().published === 5);
    await orders.pool.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'turnout relay%'`,
    );
    const ids = await orders.publish(5);
    await waitFor(() => ids.every((id) => idsIn(broker.messages(orders.topic)).includes(id)));
    expect(events).toContainEqual({ kind: 'stepped-down', why: 'failed' });
  });

  test('at start is waited for, and the relay can be stopped meanwhile', async () => {
    const pool = new Pool({ connectionString: `postgres://postgres@127.0.0.1:${await freePort()}/nothing` });
    const { relay, log } = relayOf({ pool }, inMemoryBroker().publisher());
    void relay.start();
    await waitFor(() => log.some((line) => line.includes('waits and tries again')));
    await relay.stop();
    await pool.end();
  });

  test('while a topic is missing does not end the relay', async () => {
    const orders = await producer();
    const broker = inMemoryBroker();
    const inner = broker.publisher();
    let refused = 0;
    const missing: Publisher = {
      ...inner,
      async send(batches) {
        if ((await inner.partitionCounts([orders.topic])).size > 0) return inner.send(batches);
        refused++;
        throw new TurnoutError('TURNOUT_TOPIC_MISSING', 'There is no such topic.');
      },
    };
    const { relay } = relayOf(orders, missing);
    await relay.start();
    await orders.publish(2);
    await waitFor(() => refused > 0);
    await orders.pool.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'turnout relay%'`,
    );
    const before = refused;
    await waitFor(() => refused > before);
    await broker.topics().create([{ name: orders.topic, partitions: orders.partitions }]);
    await waitFor(() => relay.counts().published === 2);
  });

  test('by not answering any more is left, and connected again', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const address = new URL(orders.url);
    const line = await swallowingLine(address);
    const pool = new Pool({ connectionString: address.href });
    pool.on('error', () => undefined);
    const { relay, events } = relayOf({ pool }, broker.publisher(), { takeoverMs: 400 });
    await relay.start();
    await orders.publish(1);
    await waitFor(() => relay.counts().published === 1);
    line.swallow();
    await orders.publish(1);
    await waitFor(() => events.some(({ kind }) => kind === 'stepped-down'));
    // The server doesn't know yet that the old connection leads nowhere: the relay takes over from itself.
    await waitFor(() => new Set(idsIn(broker.messages(orders.topic))).size === 2);
    expect(relay.counts().takeovers).toBe(1);
    await relay.stop();
    line.close();
    await pool.end();
  });

  test('to give the connection for a backlog does not keep the relay from getting through it', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const ids = await orders.publish(400);
    const pool = new Pool({ connectionString: orders.url, max: 2 });
    pool.on('error', () => undefined);
    const taken = await pool.connect();
    const log: string[] = [];
    const relay = createRelay({
      database: pgDatabase(pool, { connectTimeoutMs: 200 }),
      publisher: broker.publisher(),
      pageSize: 30,
      logger: { ...silentLogger, warn: (line) => log.push(line) },
    });
    running.push(relay);
    await relay.start();
    await waitFor(() => relay.counts().ticks === 1);
    expect(log.length).toBeGreaterThan(0);
    expect(idsIn(broker.messages(orders.topic)).toSorted()).toEqual(ids.toSorted());
    await relay.stop();
    taken.release();
    await pool.end();
  });
});

describe('the relay refuses to work', () => {
  async function refusal(orders: Producer, broker: InMemoryBroker): Promise<unknown> {
    const { relay } = relayOf(orders, broker.publisher());
    return relay.start().then(
      () => relay.failed(),
      (error: unknown) => error,
    );
  }

  test('with a sequence that caches numbers', async () => {
    const orders = await producer();
    await orders.pool.query('alter sequence turnout.outbox_seq_seq cache 20');
    expect(await refusal(orders, await brokerFor(orders))).toMatchObject({
      code: 'TURNOUT_SEQUENCE_CACHED',
      details: { cache: 20 },
    });
  });

  test('when a topic has another number of partitions', async () => {
    const orders = await producer();
    const broker = await brokerFor({ ...orders, partitions: 4 });
    expect(await refusal(orders, broker)).toMatchObject({
      code: 'TURNOUT_PARTITIONS_MISMATCH',
      details: { topic: orders.topic, recorded: 3, actual: 4 },
    });
  });

  test('with a pool of one connection', async () => {
    const orders = await producer();
    const pool = new Pool({ connectionString: orders.url, max: 1 });
    expect(await refusal({ ...orders, pool }, await brokerFor(orders))).toMatchObject({
      code: 'TURNOUT_POOL_TOO_SMALL',
    });
    await pool.end();
  });

  test('without migrations', async () => {
    const empty = await database();
    const { relay } = relayOf({ pool: empty.pool() }, inMemoryBroker().publisher());
    await expect(relay.start()).rejects.toMatchObject({ code: 'TURNOUT_MIGRATION_MISSING' });
  });

  describe('in a database that was put back', () => {
    async function published(count: number) {
      const orders = await producer();
      const broker = await brokerFor(orders);
      await orders.publish(count);
      const { relay } = relayOf(orders, broker.publisher());
      await relay.start();
      await waitFor(() => relay.counts().published === count);
      await relay.stop();
      return { orders, broker };
    }

    test('to before its last events, even on the same server', async () => {
      const { orders, broker } = await published(10);
      // What a snapshot of the disk from before would hold.
      await orders.pool.query('truncate turnout.relay_tick; truncate turnout.outbox');
      expect(await refusal(orders, broker)).toMatchObject({
        code: 'TURNOUT_DATABASE_REWOUND',
        details: { topic: orders.topic },
      });
      // It doesn't forget: started again, it halts again.
      expect(await refusal(orders, broker)).toMatchObject({ code: 'TURNOUT_DATABASE_REWOUND' });
    });

    test('on another server, without the last event', async () => {
      const { orders, broker } = await published(10);
      await orders.pool.query(`update turnout.relay_shard set system_identifier = '1'`);
      await orders.pool.query('delete from turnout.outbox where seq = (select max(o.seq) from turnout.outbox o)');
      expect(await refusal(orders, broker)).toMatchObject({ code: 'TURNOUT_DATABASE_REWOUND' });
    });

    test('by a copy into a cluster that has used fewer transactions', async () => {
      const { orders, broker } = await published(10);
      // What pg_dump and restore leave: numbers that are far ahead of this cluster.
      await orders.pool.query(
        `insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
          select 0, max(t.tick) + 1, '900000000:900000000:', '900000000:900000000:', '{}', 'copied' from turnout.relay_tick t`,
      );
      expect(await refusal(orders, broker)).toMatchObject({
        code: 'TURNOUT_DATABASE_REWOUND',
        details: { in: 'turnout.relay_tick' },
      });
      // Also when this cluster has caught up since: the row was written by a transaction that is lower than what it says.
      await orders.pool.query(
        `with next as (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 20 as xid)
          update turnout.relay_tick t set (lo, hi) = (select format('%s:%s:', n.xid, n.xid)::pg_snapshot, format('%s:%s:', n.xid, n.xid)::pg_snapshot from next n)
          where t.relay = 'copied'`,
      );
      for (let n = 0; n < 30; n++) await orders.pool.query('select pg_current_xact_id()');
      expect(await refusal(orders, broker)).toMatchObject({ details: { in: 'turnout.relay_tick' } });
      await orders.pool.query('truncate turnout.relay_tick');
      await orders.pool.query(`update turnout.outbox set xid = '900000000'`);
      expect(await refusal(orders, broker)).toMatchObject({
        code: 'TURNOUT_DATABASE_REWOUND',
        details: { in: 'turnout.outbox' },
      });
    });

    test('but not on another server that has everything, nor in a new generation', async () => {
      const { orders, broker } = await published(10);
      await orders.pool.query('update turnout.relay_shard set timeline = timeline + 1');
      const { relay, log } = relayOf(orders, broker.publisher());
      await relay.start();
      expect(log).toContainEqual(expect.stringContaining('another server or timeline'));
      await relay.stop();
      await orders.pool.query(
        'truncate turnout.relay_tick; truncate turnout.outbox; update turnout.source set generation = 2',
      );
      const next = relayOf(orders, broker.publisher());
      await next.relay.start();
      await orders.publish(1, { key: 'k' });
      await waitFor(() => next.relay.counts().published === 1);
      expect(
        broker
          .messages(orders.topic)
          .filter(({ key }) => key === 'k')
          .map(({ headers }) => headers['ce_sequence']),
      ).toEqual(dense(1, 2));
    });
  });
});

describe('two relays', () => {
  test('one leads, the other stands by and takes over when it stops', async () => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    const first = relayOf(orders, broker.publisher());
    await first.relay.start();
    let takeovers = 0;
    const second = relayOf(orders, broker.publisher(), { onTakeover: () => takeovers++ });
    await second.relay.start();
    expect(second.events).toEqual([{ kind: 'standing-by' }]);
    await orders.publish(5);
    await waitFor(() => first.relay.counts().published === 5);
    await first.relay.stop();
    await orders.publish(5);
    await waitFor(() => second.relay.counts().published === 5);
    expect(second.relay.counts()).toMatchObject({ takeovers: 1, replayed: 0 });
    expect(takeovers).toBe(1);
    expect(broker.messages(orders.topic)).toHaveLength(10);
  });

  test('a leader that was killed is followed at once, and its last tick is replayed identically', async () => {
    const orders = await onKafka();
    const first = orders.spawn({ dieAfterSends: 1 });
    await first.line(/"leading"/, { deadlineMs: 20_000 });
    const standby = orders.spawn({});
    await standby.line(/"standing-by"/, { deadlineMs: 20_000 });
    await orders.publish(40);
    expect((await first.exited).signal).toBe('SIGKILL');
    await standby.line(/"leading","takeover":true/, { deadlineMs: 20_000 });
    await standby.line(/"tick","tick":"1".*"replayed":true/, { deadlineMs: 20_000 });
    await orders.publish(10);
    await standby.line(/"tick","tick":"\d+","events":10,"replayed":false/, { deadlineMs: 20_000 });
    expectWhole(await orders.messages(), 50);
  });

  test.each([
    ['looks at the topics', 'lastRecords'],
    ['waits for a send', 'send'],
  ] as const)('a leader that %s for longer than takeoverMs is alive, and left alone', async (_, slow) => {
    const orders = await producer();
    const broker = await brokerFor(orders);
    await orders.publish(10);
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    let waiting = 0;
    const publisher = (): Publisher => {
      const inner = broker.publisher();
      const held = async <Result>(result: () => Promise<Result>): Promise<Result> => {
        waiting++;
        await gate;
        return result();
      };
      return slow === 'send'
        ? { ...inner, send: (batches) => held(() => inner.send(batches)) }
        : { ...inner, lastRecords: (topics) => held(() => inner.lastRecords(topics)) };
    };
    const both = [1, 2].map(() => relayOf(orders, publisher(), { takeoverMs: 200 }));
    const starting = both.map(({ relay }) => relay.start());
    await waitFor(() => waiting > 0 && both.some(({ events }) => events.some(({ kind }) => kind === 'standing-by')));
    const since = performance.now();
    await waitFor(() => performance.now() - since > 1_500);
    go();
    await Promise.all(starting);
    await waitFor(() => both.some(({ relay }) => relay.counts().published === 10));
    expect(both.flatMap(({ log }) => log).filter((line) => line.includes('is ended'))).toEqual([]);
    expect(broker.messages(orders.topic)).toHaveLength(10);
  });

  test('a paused leader loses its lead to the standby, is fenced when it wakes, and stands by', async () => {
    const orders = await onKafka();
    const first = orders.spawn({ takeoverMs: 2_000 });
    await first.line(/"leading"/, { deadlineMs: 20_000 });
    const second = orders.spawn({ takeoverMs: 2_000 });
    await second.line(/"standing-by"/, { deadlineMs: 20_000 });
    await orders.publish(10);
    await first.line(/"tick"/);
    first.signal('SIGSTOP');
    await orders.publish(10);
    await second.line(/"leading","takeover":true/, { deadlineMs: 20_000 });
    await second.line(/"tick".*"replayed":false/, { deadlineMs: 20_000 });
    first.signal('SIGCONT');
    await first.line(/"stepped-down"/, { deadlineMs: 20_000 });
    await first.line(/"standing-by"/, { deadlineMs: 20_000 });
    await orders.publish(10);
    await second.line(/"tick".*"events":10,"replayed":false/, { deadlineMs: 20_000 });
    expectWhole(await orders.messages(), 30);
  });

  /** A producer on the real Kafka, with relays in processes of their own. */
  async function onKafka() {
    const orders = await producer();
    const { brokers } = await sharedKafka();
    const kafka = new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING });
    await kafkaJsTopics(kafka).create([{ name: orders.topic, partitions: orders.partitions }]);
    return {
      ...orders,
      messages: () => readTopic(kafka, orders.topic),
      spawn(options: Record<string, unknown>) {
        const process = spawnNode(new URL('../reading/relay-process.ts', import.meta.url), [
          JSON.stringify({ url: orders.url, brokers, seed: 1, ...options }),
        ]);
        onTestFinished(async () => void (await process.kill('SIGKILL')));
        return process;
      },
    };
  }

  function expectWhole(messages: readonly StoredMessage[], count: number): void {
    const first = new Map<string, StoredMessage>();
    for (const message of messages) {
      const id = message.headers['ce_id']!;
      const seen = first.get(id);
      if (seen === undefined) first.set(id, message);
      else expect({ ...message, offset: seen.offset }).toEqual(seen);
    }
    expect(first.size).toBe(count);
    for (const partition of [0, 1, 2]) {
      const numbers = sequences([...first.values()], partition);
      expect(numbers).toEqual(dense(numbers.length));
    }
  }
});

test('a role that has been granted turnout_relay, and nothing else, can relay, take over and keep the outbox', async () => {
  const orders = await producer();
  const broker = await brokerFor(orders);
  await migrate(pgDatabase(orders.pool), ['roles']);
  const role = uniqueName('relay_role');
  await orders.pool.query(`create role ${role} login in role turnout_relay`);
  const address = new URL(orders.url);
  address.username = role;
  const pool = new Pool({ connectionString: address.href });
  pool.on('error', () => undefined);
  onTestFinished(async () => {
    await pool.end();
    await orders.pool.query(`drop role ${role}`);
  });
  const log: string[] = [];
  const keeper = outboxKeeper({
    database: pgDatabase(pool),
    retentionMs: 0,
    everyMs: 20,
    logger: { ...silentLogger, warn: (line) => log.push(line) },
  });
  await keeper.start();
  // Who leads is stopped, and does nothing at all.
  const stopped = await pool.connect();
  stopped.on('error', () => undefined);
  await stopped.query(`select pg_advisory_lock(hashtext('turnout.relay'), 0)`);
  await orders.publish(3);
  const second = relayOf({ pool }, broker.publisher(), { takeoverMs: 200 });
  await second.relay.start();
  await waitFor(() => second.relay.counts().published === 3);
  expect(second.relay.counts().takeovers).toBe(1);
  expect(log).toEqual([]);
  stopped.release(true);
  await Promise.all([keeper.stop(), second.relay.stop()]);
});

test('Kafka is killed and comes back: everything is there, in order', { timeout: 120_000 }, async () => {
  const own = await startKafka({ restartable: true });
  onTestFinished(() => own.stop());
  const kafka = new Kafka({
    brokers: [...own.brokers],
    logLevel: logLevel.NOTHING,
    retry: { retries: 2, initialRetryTime: 50 },
  });
  const orders = await producer();
  await kafkaJsTopics(kafka).create([{ name: orders.topic, partitions: 3 }]);
  const { relay, log } = relayOf(orders, kafkaJsPublisher(kafka));
  await relay.start();
  const ids = await orders.publish(50, { key: 'one' });
  await waitFor(() => relay.counts().published === 50);
  await own.kill();
  ids.push(...(await orders.publish(50, { key: 'one' })));
  await waitFor(() => log.some((line) => line.startsWith('Publishing failed')), { deadlineMs: 30_000 });
  ids.push(...(await orders.publish(50, { key: 'one' })));
  await own.restart();
  await waitFor(() => relay.counts().published >= 150, { deadlineMs: 60_000 });
  const seen = [...new Set(idsIn(await readTopic(kafka, orders.topic)))];
  expect(seen).toEqual(ids);
});
