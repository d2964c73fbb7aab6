// An id of the caller's choice is published once: whoever publishes it again gets what was written the first time.
import { randomUUID } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { defineSwitchover, occurrence, on, setStage } from 'turnout';
import type { SwitchoverDefinition } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { waitFor } from '../support/index.ts';
import { consumer, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';

type Producer = Awaited<ReturnType<typeof producer>>;

const order = (orderId: string, step = 1) => ({ orderId, step });

function switchover(url: string, more: Partial<{ order: 'key' | 'none'; name: string }> = {}): SwitchoverDefinition {
  return defineSwitchover({
    name: 'order-email',
    consumer: 'email',
    order: 'none',
    timeoutMs: 2_000,
    rpc: [OrderPlaced, OrderChanged].map((event) =>
      on(event, (happened, call) => rpcFetch(call, url, { json: happened.data })),
    ),
    ...more,
  });
}

/** Nobody answers there: its calls stay owed. */
const nobody = 'http://127.0.0.1:9/effects';

const outboxOf = async ({ pool }: Producer) =>
  (
    await pool.query<{ id: string; step: number; routes: string | null }>(
      `select o.id::text as id, (o.payload ->> 'step')::integer as step, o.routes from turnout.outbox o order by o.seq`,
    )
  ).rows;

/** Whether a session of this database waits for a lock. */
const waits = async ({ pool }: Producer) =>
  (
    await pool.query(
      `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and pid <> pg_backend_pid()`,
    )
  ).rowCount === 1;

describe.each(['none', 'key'] as const)('with order %s', (ordering) => {
  test('the second time gives what was written the first time, and writes nothing', async () => {
    const orders = await producer();
    const definition = switchover(nobody, { order: ordering });
    await orders.register(definition);
    const turnout = orders.turnout([definition]);
    const id = randomUUID();
    const first = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, order('a'), { id }));
    const again = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, order('a', 2), { id }));
    expect(again).toMatchObject({ id, seq: first.seq, time: first.time, key: 'a', stamps: first.stamps });
    // By SQL too, and in the transaction that published it.
    const { rows } = await orders.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{"orderId": "a", "step": 3}', switchovers => '{order-email}', id => $1) as id`,
      [id],
    );
    expect(rows).toEqual([{ id }]);
    const other = randomUUID();
    const both = await turnout.transaction(async (tx) => [
      await turnout.publish(tx, OrderChanged, order('a', 4), { id: other }),
      await turnout.publish(tx, OrderChanged, order('a', 5), { id: other }),
    ]);
    expect(both[1]!.seq).toBe(both[0]!.seq);
    expect((await outboxOf(orders)).map(({ id: one, step }) => [one, step])).toEqual([
      [id, 1],
      [other, 4],
    ]);
    if (ordering === 'key') expect([first, ...both].map(({ stamps }) => stamps[0]!.turn?.number)).toEqual([1, 2, 2]);
    expect(await orders.owed()).toHaveLength(2);
    await turnout.close();
  });

  test('two transactions at once: one event; and the second publishes it if the first is rolled back', async () => {
    const orders = await producer();
    const definition = switchover(nobody, { order: ordering });
    await orders.register(definition);
    const turnout = orders.turnout([definition]);
    for (const end of ['commit', 'rollback'] as const) {
      const id = randomUUID();
      const client = await orders.pool.connect();
      await client.query('begin');
      const first = await turnout.publish(client, OrderPlaced, order(end), { id });
      const second = turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, order(end), { id }));
      await waitFor(() => waits(orders), { what: 'the second to wait', deadlineMs: 5_000 });
      await client.query(end);
      client.release();
      const { seq, stamps } = await second;
      expect(seq === first.seq).toBe(end === 'commit');
      if (ordering === 'key') expect(stamps[0]!.turn?.number).toBe(1);
      expect((await outboxOf(orders)).filter((row) => row.id === id)).toHaveLength(1);
    }
    await turnout.close();
  });
});

test('an id is free again when the savepoint in which it was published is rolled back', async () => {
  const orders = await producer();
  const turnout = orders.turnout([]);
  const id = randomUUID();
  await turnout.transaction(async (tx) => {
    const client = tx;
    await client.query('savepoint mine');
    await turnout.publish(tx, OrderPlaced, order('a', 1), { id });
    await client.query('rollback to savepoint mine');
    await turnout.publish(tx, OrderPlaced, order('a', 2), { id });
  });
  expect(await outboxOf(orders)).toMatchObject([{ id, step: 2 }]);
});

test('who holds the key does not wait for one that waits for the key', async () => {
  const orders = await producer();
  const turnout = orders.turnout([]);
  const id = randomUUID();
  // Nothing is tried again here: a deadlock would be told.
  const [holder, later] = [await orders.pool.connect(), await orders.pool.connect()];
  await holder.query('begin');
  await later.query('begin');
  await turnout.publish(holder, OrderPlaced, order('a', 1));
  const second = turnout.publish(later, OrderPlaced, order('a', 2), { id });
  await waitFor(() => waits(orders), { what: 'the second to wait', deadlineMs: 5_000 });
  const first = await turnout.publish(holder, OrderPlaced, order('a', 2), { id });
  await holder.query('commit');
  expect((await second).seq).toBe(first.seq);
  await later.query('commit');
  for (const client of [holder, later]) client.release();
});

test('known, new and nameless events come out in the order given', async () => {
  const orders = await producer();
  const definition = switchover(nobody, { order: 'key' });
  await orders.register(definition);
  const turnout = orders.turnout([definition]);
  const [known, fresh, late] = [randomUUID(), randomUUID(), randomUUID()];
  const before = await turnout.transaction((tx) =>
    turnout.publishAll(tx, [
      occurrence(OrderPlaced, order('b', 1), { id: known }),
      occurrence(OrderPlaced, order('b', 2), { id: late }),
    ]),
  );
  const all = await turnout.transaction((tx) =>
    turnout.publishAll(tx, [
      occurrence(OrderPlaced, order('a', 3), { id: fresh }),
      occurrence(OrderPlaced, order('b', 2), { id: late }),
      occurrence(OrderChanged, order('a', 4)),
      occurrence(OrderPlaced, order('b', 1), { id: known }),
      occurrence(OrderChanged, order('b', 5)),
    ]),
  );
  expect(all.map(({ id, key }) => [id, key])).toEqual([
    [fresh, 'a'],
    [late, 'b'],
    [expect.any(String), 'a'],
    [known, 'b'],
    [expect.any(String), 'b'],
  ]);
  expect(all.map(({ stamps }) => stamps[0]!.turn!.number)).toEqual([1, 2, 2, 1, 3]);
  expect([all[3]!.seq, all[1]!.seq]).toEqual(before.map(({ seq }) => seq));
  expect((await outboxOf(orders)).map(({ step }) => step)).toEqual([1, 2, 3, 4, 5]);
  await turnout.close();
});

test('an id of an event of another type, key or source is refused', async () => {
  const orders = await producer();
  const turnout = orders.turnout([]);
  const id = randomUUID();
  await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, order('a'), { id }));
  const code = 'TURNOUT_EVENT_ID_REUSED';
  await expect(
    turnout.transaction((tx) => turnout.publish(tx, OrderChanged, order('a'), { id })),
  ).rejects.toMatchObject({ code, details: { id, path: 'type' } });
  await expect(
    turnout.transaction((tx) =>
      turnout.publishAll(tx, [occurrence(OrderPlaced, order('c')), occurrence(OrderPlaced, order('b'), { id })]),
    ),
  ).rejects.toMatchObject({ code, details: { id, path: 'key', index: 1 } });
  await orders.pool.query(`insert into turnout.source (name) values ('other')`);
  await expect(
    orders.pool.query(`select turnout.publish('other', 'orders.order-placed', 1, 'a', '{}', id => $1)`, [id]),
  ).rejects.toMatchObject({ code: 'TU035' });
  await expect(
    orders.pool.query(
      `select from turnout.publish_once('orders', json_build_array(json_build_object('id', $1::text), json_build_object('id', $1::text)))`,
      [id],
    ),
  ).rejects.toMatchObject({ code: 'TU009' });
  expect(await outboxOf(orders)).toHaveLength(1);
});

test('after a call has its answer, no other is made, however late the id comes again; one that is owed is made with the first data', async () => {
  const [orders, email] = await Promise.all([producer(), consumer()]);
  const definition = switchover(email.url);
  await orders.register(definition);
  const turnout = orders.turnout([definition]);
  const id = randomUUID();
  const post = async (step: number) => {
    const published = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, order('a', step), { id }));
    return published.reply(definition);
  };
  expect(await post(1)).toMatchObject({ status: 'done', outcome: 'applied' });
  await waitFor(async () => (await orders.owed()).length === 0, { what: 'the call to be over', deadlineMs: 5_000 });
  const requests = email.requests();
  expect(await post(2)).toMatchObject({
    status: 'pending',
    why: expect.stringContaining('published before') as string,
  });
  expect(email.requests()).toBe(requests);

  // The first process said nothing of its call: whoever comes again makes it.
  const owed = randomUUID();
  await orders.pool.query(
    `select turnout.publish('orders', 'orders.order-placed', 1, 'b', '{"orderId": "b", "step": 7}', switchovers => '{order-email}', id => $1)`,
    [owed],
  );
  const published = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, order('b', 8), { id: owed }));
  expect(await published.reply(definition)).toMatchObject({ status: 'done', reply: { body: { sent: 'b', step: 7 } } });
  const { rows } = await email.pool.query('select order_id, step from effects order by effects.id');
  expect(rows).toEqual([
    { order_id: 'a', step: 1 },
    { order_id: 'b', step: 7 },
  ]);
  await turnout.close();
  await email.close();
});

test('a switchover that the code no longer has is no hindrance', async () => {
  const orders = await producer();
  const definition = switchover(nobody);
  await orders.register(definition);
  const before = orders.turnout([definition]);
  const after = orders.turnout([]);
  const id = randomUUID();
  const first = await before.transaction((tx) => before.publish(tx, OrderPlaced, order('a'), { id }));
  const again = await after.transaction((tx) => after.publish(tx, OrderPlaced, order('a'), { id }));
  await after.deliver(again);
  expect(again.stamps).toEqual(first.stamps);
  await before.close();
  await after.close();
});

test('old ids are forgotten in batches, but none for which a call is owed', async () => {
  const orders = await producer();
  const definition = switchover(nobody);
  await orders.register(definition);
  const [owed, event, young] = [randomUUID(), randomUUID(), randomUUID()];
  const publish = (id: string) =>
    orders.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{"orderId": "a", "step": 1}', switchovers => '{order-email}', id => $1)`,
      [id],
    );
  await publish(owed);
  await setStage(orders.database, 'orders', definition.name, 'event', { reason: 'test', force: true });
  for (const id of [event, ...Array.from({ length: 3 }, () => randomUUID())]) await publish(id);
  await orders.pool.query(`update turnout.published_id set claimed_at = claimed_at - interval '31 days'`);
  await publish(young);
  const forget = async () =>
    (await orders.pool.query<{ n: number }>(`select turnout.delete_old_published_ids('30 days', 3) as n`)).rows[0]!.n;
  expect([await forget(), await forget(), await forget()]).toEqual([3, 1, 0]);
  const { rows } = await orders.pool.query<{ id: string }>(
    'select p.id::text as id from turnout.published_id p order by p.claimed_at',
  );
  expect(rows.map(({ id }) => id)).toEqual([owed, young]);
  // Then it is a new event.
  await publish(event);
  expect((await outboxOf(orders)).filter(({ id }) => id === event)).toHaveLength(2);
});
