import { randomUUID } from 'node:crypto';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  acceptedAnswer,
  answerReplyStatus,
  createRelay,
  createTurnout,
  defineConsumer,
  defineEvent,
  defineSwitchover,
  migrate,
  on,
  outboxKeeper,
  registerEvents,
  replyConsumer,
  replyTo,
  rpcSweeper,
  runConsumer,
  setStage,
  silentLogger,
} from 'turnout';
import type { Service } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { inMemoryBroker } from 'turnout/testing';
import { z } from 'zod';
import { applyTopics } from '../../src/relay/index.ts';
import { effectKeyOf } from '../../src/event/index.ts';
import { readReplies, replyWaiter } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';
import { consumer, OrderPlaced, producer } from './fixtures/switchover-world.ts';

const ConfirmationSent = defineEvent({
  name: 'email.confirmation-sent',
  version: 1,
  topic: 'email-replies',
  schema: z.object({ orderId: z.string(), mail: z.number() }),
  order: 'none',
});
type World = Awaited<ReturnType<typeof world>>;

/** Orders calls e-mail; e-mail's handler of the event answers with an event of its own. */
async function world({ running = true } = {}) {
  const [orders, email] = await Promise.all([producer(), consumer()]);
  await migrate(orders.database, ['producer', 'consumer']);
  await migrate(email.database, ['producer', 'consumer']);
  await registerEvents(email.database, 'email', [ConfirmationSent]);
  const confirmation = defineSwitchover({
    name: 'order-email',
    consumer: 'email',
    order: 'none',
    timeoutMs: 2_000,
    rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, email.url, { json: event.data }))],
    reply: ConfirmationSent,
  });
  await orders.register(confirmation);
  const broker = inMemoryBroker();
  await applyTopics(broker.topics(), [OrderPlaced, ConfirmationSent]);
  const turnout = orders.turnout([confirmation], { replyStatusUrl: (effectKey) => `/replies/${effectKey}` });
  const answering = createTurnout({ source: 'email', database: email.database });
  const mailer = defineConsumer(email.database, {
    name: 'email',
    from: 'beginning',
    inSwitchover: [OrderPlaced],
    handlers: [
      on(OrderPlaced, async (event, context) => {
        const { rows } = await context.tx.query<{ id: string }>(
          `insert into effects (order_id, step, how) values ($1, $2, 'event') returning effects.id::text as id`,
          [event.data.orderId, event.data.step],
        );
        await answering.publish(
          context.tx,
          ConfirmationSent,
          { orderId: event.data.orderId, mail: Number(rows[0]!.id) },
          replyTo(context),
        );
      }),
    ],
  });
  const parts = {
    ordersRelay: createRelay({ database: orders.database, publisher: broker.publisher(), logger: silentLogger }),
    emailRelay: createRelay({ database: email.database, publisher: broker.publisher(), logger: silentLogger }),
    mailer: runConsumer(mailer, { source: broker.source(), logger: silentLogger }),
    replies: runConsumer(replyConsumer(orders.database, { name: 'orders-replies', switchovers: [confirmation] }), {
      source: broker.source(),
      logger: silentLogger,
    }),
  } satisfies Record<string, Service>;
  const started = new Set<Service>();
  const start = async (...names: (keyof typeof parts)[]): Promise<void> => {
    for (const name of names) {
      started.add(parts[name]);
      await parts[name].start();
    }
  };
  onTestFinished(async () => {
    await turnout.close();
    await Promise.all([...started].map((service) => service.stop()));
    await email.close();
  });
  if (running) await start('ordersRelay', 'emailRelay', 'mailer', 'replies');
  return { orders, email, confirmation, turnout, answering, broker, start };
}

const place = ({ turnout }: World, orderId: string, id?: string) =>
  turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, { orderId, step: 1 }, id === undefined ? {} : { id }));

const toEvent = ({ orders, confirmation }: World) =>
  setStage(orders.database, 'orders', confirmation.name, 'event', { reason: 'test', force: true });

describe('after the switch', () => {
  test('an event of another type answers nothing, and does not stand in the way of the one that does', async () => {
    const w = await world({ running: false });
    await toEvent(w);
    const published = await place(w, 'order-1');
    const { effectKey } = published.stamps[0]!;
    // A consumer that brings home the replies of several switchovers has a handler for each of their types.
    const Other = defineEvent({
      name: 'email.bounced',
      version: 1,
      topic: 'email-replies',
      schema: z.object({ orderId: z.string(), mail: z.number() }),
      order: 'none',
    });
    const other = defineSwitchover({
      name: 'bounces',
      consumer: 'bounces',
      order: 'none',
      rpc: [on(OrderPlaced, () => Promise.reject(new Error('unused')))],
      reply: Other,
    });
    const home = replyConsumer(w.orders.database, { name: 'home', switchovers: [w.confirmation, other] });
    const comes = (type: string, data: unknown) =>
      w.orders.database.transaction(async (tx) =>
        home.handlers
          .find(({ event }) => event.name === type)!
          .react(
            { id: randomUUID(), type, data, headers: { 'turnout-reply-to': effectKey } } as never,
            { tx } as never,
          ),
      );
    await comes('email.bounced', { orderId: 'order-1', mail: 99 });
    expect(await published.reply(w.confirmation, { timeoutMs: 0 })).toMatchObject({ status: 'pending' });
    await comes(ConfirmationSent.name, { orderId: 'order-1', mail: 1 });
    const reply = { route: 'event', status: 'done', reply: { orderId: 'order-1', mail: 1 } };
    expect(await published.reply(w.confirmation, { timeoutMs: 0 })).toEqual(reply);
    expect(await w.turnout.replyStatus(effectKey)).toEqual(reply);
    // One for which nobody said what answers: still nothing but the definition's own is handed out as it.
    await w.orders.pool.query(`update turnout.reply set reply_type = null, event_type = 'email.bounced'`);
    expect(await published.reply(w.confirmation, { timeoutMs: 0 })).toMatchObject({ status: 'pending' });
  });

  test('a caller gets the data of the reply event, and the effect happens once', async () => {
    const w = await world();
    await toEvent(w);
    const published = await place(w, 'order-1');
    const reply = await published.reply(w.confirmation, { timeoutMs: 20_000 });
    expect(reply).toEqual({ route: 'event', status: 'done', reply: { orderId: 'order-1', mail: 1 } });
    // Asked again, by anybody, it is the same.
    expect(await published.reply(w.confirmation, { timeoutMs: 0 })).toEqual(reply);
    expect(await w.turnout.replyStatus(published.stamps[0]!.effectKey)).toEqual(reply);
    expect(await w.email.effects()).toEqual([1]);
  });

  test('the deadline passes, the stage flips, the client asks by the status URL and posts again: one execution', async () => {
    const w = await world({ running: false });
    await toEvent(w);
    const id = randomUUID();
    const effectKey = effectKeyOf('email', id);
    const ask = (key = effectKey, allowed = true) => answerReplyStatus(w.turnout, key, { authorize: () => allowed });
    expect(await ask()).toMatchObject({ status: 404, body: { status: 'unknown' } });

    const first = await place(w, 'order-1', id);
    const pending = await first.reply(w.confirmation, { timeoutMs: 50 });
    expect(pending).toEqual({ route: 'event', status: 'pending', effectKey, statusUrl: `/replies/${effectKey}` });
    if (pending.status !== 'pending') throw new Error('It is pending.');
    expect(acceptedAnswer(pending)).toEqual({
      status: 202,
      headers: { location: `/replies/${effectKey}`, 'retry-after': '1' },
      body: { status: 'pending', effectKey, statusUrl: `/replies/${effectKey}` },
    });
    expect(await ask()).toMatchObject({ status: 202, headers: { 'retry-after': '1' } });
    expect(await ask(effectKey, false)).toMatchObject({ status: 404 });
    expect(await ask('email.not-a-uuid')).toMatchObject({ status: 404 });

    // The client posts again, while the stage has gone back: it is the same event, which keeps its way.
    await setStage(w.orders.database, 'orders', w.confirmation.name, 'rpc', { reason: 'back' });
    const second = await place(w, 'order-1', id);
    expect(second).toMatchObject({ seq: first.seq, stamps: first.stamps });
    expect(await second.reply(w.confirmation, { timeoutMs: 50 })).toEqual(pending);
    expect(await w.orders.owed()).toEqual([]);

    await w.start('ordersRelay', 'emailRelay', 'mailer', 'replies');
    const answer = { route: 'event', status: 'done', reply: { orderId: 'order-1', mail: 1 } };
    expect(await second.reply(w.confirmation, { timeoutMs: 20_000 })).toEqual(answer);
    expect(await first.reply(w.confirmation, { timeoutMs: 0 })).toEqual(answer);
    // And a third time, when all is over.
    const third = await place(w, 'order-1', id);
    expect(await third.reply(w.confirmation, { timeoutMs: 0 })).toEqual(answer);
    expect(await ask()).toMatchObject({ status: 200, body: { status: 'done', route: 'event' } });
    expect(await w.email.effects()).toEqual([1]);
  });

  test('a reply is there for whoever asks, before anybody waited, after they gave up, and from another process', async () => {
    const w = await world();
    await toEvent(w);
    const published = await place(w, 'order-1');
    const { effectKey } = published.stamps[0]!;
    await waitFor(async () => (await w.turnout.replyStatus(effectKey)).status === 'done', { what: 'the reply' });
    expect(await published.reply(w.confirmation, { timeoutMs: 0 })).toMatchObject({ status: 'done' });
    const elsewhere = w.orders.turnout([w.confirmation]);
    onTestFinished(() => elsewhere.close());
    expect(await elsewhere.replyStatus(effectKey)).toMatchObject({ route: 'event', reply: { mail: 1 } });
  });

  test('the first reply stays, and one for what was never published here or rolled back leaves no trace', async () => {
    const w = await world();
    await toEvent(w);
    const published = await place(w, 'order-1');
    const { effectKey } = published.stamps[0]!;
    await published.reply(w.confirmation, { timeoutMs: 20_000 });

    let undone: typeof published | undefined;
    await expect(
      w.turnout.transaction(async (tx) => {
        undone = await w.turnout.publish(tx, OrderPlaced, { orderId: 'order-2', step: 1 });
        throw new Error('no');
      }),
    ).rejects.toThrow('no');
    const undoneKey = undone!.stamps[0]!.effectKey;
    await expect(undone!.reply(w.confirmation)).rejects.toMatchObject({ code: 'TURNOUT_TRANSACTION_ABORTED' });

    const say = (key: string) =>
      w.answering.transaction((tx) =>
        w.answering.publish(tx, ConfirmationSent, { orderId: 'x', mail: 99 }, replyTo({ effectKey: key })),
      );
    for (const key of [effectKey, undoneKey, effectKeyOf('email', randomUUID()), 'no effect key']) await say(key);
    await waitFor(
      async () =>
        Number(
          (
            await w.orders.pool.query(
              `select count(*)::text as n from turnout.inbox i where i.consumer = 'orders-replies'`,
            )
          ).rows[0].n,
        ) === 5,
      { what: 'all replies to be read' },
    );
    expect(await w.turnout.replyStatus(effectKey)).toMatchObject({ reply: { mail: 1 } });
    expect(await w.turnout.replyStatus(undoneKey)).toEqual({ status: 'unknown' });
    expect((await w.orders.pool.query('select effect_key from turnout.reply')).rows).toEqual([
      { effect_key: effectKey },
    ]);
  });
});

describe('on route rpc', () => {
  test('a call that times out resolves with the reply event that came in spite of it', async () => {
    const w = await world();
    const published = await place(w, 'order-0');
    expect(await published.reply(w.confirmation)).toMatchObject({ route: 'rpc', status: 'done' });

    // The endpoint never answers, but has had its effect, and says so by an event.
    w.email.behaviour.before = (request) => {
      const key = String(request.headers['idempotency-key']).replaceAll('"', '');
      void w.answering.transaction((tx) =>
        w.answering.publish(tx, ConfirmationSent, { orderId: 'order-1', mail: 7 }, replyTo({ effectKey: key })),
      );
    };
    const silent = await place(w, 'order-1');
    expect(await silent.reply(w.confirmation, { timeoutMs: 10_000 })).toEqual({
      route: 'event',
      status: 'done',
      reply: { orderId: 'order-1', mail: 7 },
    });
  });

  test('an answer that the sweeper got is found by whoever waits, and by the status URL', async () => {
    const w = await world({ running: false });
    w.email.behaviour.before = (request) => request.socket.destroy();
    const published = await place(w, 'order-1');
    const { effectKey } = published.stamps[0]!;
    const waiting = published.reply(w.confirmation, { timeoutMs: 20_000 });
    await waitFor(async () => (await w.orders.owed())[0]?.attempts === 1, { what: 'the first call to fail' });
    expect(await w.turnout.replyStatus(effectKey)).toEqual({ status: 'pending' });
    w.email.behaviour.before = (_request, _response, next) => next();
    const sweeper = rpcSweeper({
      source: 'orders',
      database: w.orders.database,
      switchovers: [w.confirmation],
      pollMs: 10,
    });
    onTestFinished(() => sweeper.stop());
    await sweeper.start();
    expect(await waiting).toEqual({
      route: 'rpc',
      status: 'done',
      outcome: 'applied',
      reply: { status: 201, headers: {}, body: { sent: 'order-1', step: 1 } },
    });
    expect(await w.orders.owed()).toEqual([]);
    expect(await w.turnout.replyStatus(effectKey)).toMatchObject({ status: 'done', outcome: 'applied' });
    expect(await w.email.effects()).toEqual([1]);
  });

  test('a call that is told “duplicate” and no more waits for the reply of the event that had the effect', async () => {
    const w = await world({ running: false });
    await toEvent(w);
    const id = randomUUID();
    const first = await place(w, 'order-1', id);
    await w.start('ordersRelay', 'mailer');
    await waitFor(async () => (await w.email.effects()).length === 1, { what: 'the effect' });
    // Posted again after a step back, while the reply is still on its way.
    await setStage(w.orders.database, 'orders', w.confirmation.name, 'rpc', { reason: 'back' });
    const second = await place(w, 'order-1', id);
    const waiting = second.reply(w.confirmation, { timeoutMs: 20_000 });
    await waitFor(async () => (await w.orders.owed()).length === 0, { what: 'the call to be answered' });
    expect(await w.turnout.replyStatus(first.stamps[0]!.effectKey)).toEqual({ status: 'pending' });
    await w.start('emailRelay', 'replies');
    expect(await waiting).toEqual({ route: 'event', status: 'done', reply: { orderId: 'order-1', mail: 1 } });
    expect(await w.email.effects()).toEqual([1]);
  });

  test('a refusal is told as one; a call that nobody kept the answer of is over, and no more is said', async () => {
    const w = await world({ running: false });
    w.email.behaviour.handler = (_request, response) => void response.status(422).json({ no: true });
    const refused = await place(w, 'order-1');
    expect(await refused.reply(w.confirmation)).toMatchObject({ status: 'rejected' });
    expect(await w.turnout.replyStatus(refused.stamps[0]!.effectKey)).toEqual({
      status: 'rejected',
      route: 'rpc',
      outcome: 'rejected',
      reply: { status: 422, body: { no: true } },
    });
    w.email.behaviour.before = (request) => request.socket.destroy();
    const other = await place(w, 'order-2');
    await waitFor(async () => (await w.orders.owed())[0]?.attempts === 1, { what: 'the call to fail' });
    await w.orders.pool.query('delete from turnout.rpc_delivery');
    expect(await w.turnout.replyStatus(other.stamps[0]!.effectKey)).toEqual({ status: 'done', route: 'rpc' });
  });
});

test('one query asks for all who wait, and replies go when they are older than the outbox keeps events', async () => {
  const w = await world({ running: false });
  await toEvent(w);
  let queries = 0;
  const counted = {
    query: <Row>(text: string, values?: unknown[]) => {
      queries++;
      return w.orders.database.query<Row>(text, values);
    },
  };
  const waiter = replyWaiter({ database: counted, logger: silentLogger });
  const published = await w.turnout.transaction(async (tx) => {
    const all = [];
    for (let n = 1; n <= 50; n++)
      all.push(await w.turnout.publish(tx, OrderPlaced, { orderId: `order-${n}`, step: 1 }));
    return all;
  });
  const keys = published.map(({ stamps }) => stamps[0]!.effectKey);
  const waiting = Promise.all(keys.map((key) => waiter.wait(key, 20_000)));
  await w.start('ordersRelay', 'emailRelay', 'mailer', 'replies');
  const replies = await waiting;
  expect(replies.map((reply) => reply?.effectKey)).toEqual(keys);
  expect(replies.every((reply) => reply?.event !== undefined)).toBe(true);
  // Each of 50 waiters for itself would have asked this often in the first round.
  expect(queries).toBeLessThan(50);
  const late = waiter.wait(effectKeyOf('email', randomUUID()), 60_000);
  waiter.close();
  expect(await late).toBeUndefined();

  await w.orders.pool.query(`update turnout.reply set at = at - interval '2 days' where effect_key <> $1`, [keys[0]]);
  const keeper = outboxKeeper({
    database: w.orders.database,
    retentionMs: 86_400_000,
    everyMs: 20,
    logger: silentLogger,
  });
  onTestFinished(() => keeper.stop());
  await keeper.start();
  await waitFor(async () => (await readReplies(w.orders.database, keys)).length === 1, { what: 'old replies to go' });
});
