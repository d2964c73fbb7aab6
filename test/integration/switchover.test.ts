import { afterEach, describe, expect, test } from 'vitest';
import {
  defineSwitchover,
  isTurnoutError,
  occurrence,
  on,
  registerSwitchover,
  rpcSweeper,
  setStage,
  switchoverHistory,
  switchoverStatus,
} from 'turnout';
import type { RpcSweeper, SwitchoverDefinition } from 'turnout';
import { createdXidFinished } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';
import { consumer, emailSwitchover, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';
import type { SwitchoverOptions } from './fixtures/switchover-world.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Both services, a switchover between them, and a publisher. */
async function world(options: SwitchoverOptions = {}) {
  const [from, to] = await Promise.all([producer(), consumer({ order: options.order ?? 'none' })]);
  const email = emailSwitchover(() => to.url, options);
  await from.register(email);
  const turnout = from.turnout([email], { retry: { attempts: 1, firstDelayMs: 20, maxDelayMs: 100 } });
  closers.push(to.close, () => turnout.close());
  return { from, to, email, turnout };
}
type World = Awaited<ReturnType<typeof world>>;

async function sweeping(
  { from }: World,
  switchovers: readonly SwitchoverDefinition[],
  more: { concurrency?: number } = {},
): Promise<RpcSweeper> {
  const sweeper = rpcSweeper({
    source: 'orders',
    database: from.database,
    switchovers,
    pollMs: 20,
    retry: { attempts: 1, firstDelayMs: 20, maxDelayMs: 100 },
    ...more,
  });
  closers.push(() => sweeper.stop());
  await sweeper.start();
  return sweeper;
}

const place = (
  { turnout }: World,
  orderId: string,
  step = 1,
  event: typeof OrderPlaced | typeof OrderChanged = OrderPlaced,
) =>
  turnout.transaction(async (tx) => {
    await tx.query('insert into business values ($1, $2)', [orderId, step]);
    const [published] = await turnout.publishAll(tx, [{ event, data: { orderId, step } }]);
    return published!;
  });

const nothingOwed = ({ from }: World) =>
  waitFor(async () => (await from.owed()).length === 0, { what: 'no call to be owed' });

describe('the rpc route', () => {
  test('calls right after the commit, and gives the answer', async () => {
    const w = await world();
    const published = await place(w, 'order-1');
    expect(published.stamps).toMatchObject([
      { switchover: 'order-email', consumer: 'email', route: 'rpc', epoch: 1, turn: undefined },
    ]);
    expect(await published.reply(w.email)).toMatchObject({
      route: 'rpc',
      status: 'done',
      outcome: 'applied',
      reply: { status: 201, body: { sent: 'order-1', step: 1 } },
    });
    expect(await w.to.effects()).toEqual([1]);
    expect(await w.to.inbox()).toMatchObject([
      { effect_key: `email.${published.id}`, outcome: 'applied', path: 'rpc' },
    ]);
    await nothingOwed(w);
  });

  test('a reply waits for the consumer, not for the row of the call; deliver() and close() wait for both', async () => {
    const w = await world();
    const [client, holder] = [await w.from.pool.connect(), await w.from.pool.connect()];
    await client.query('begin');
    const published = await w.turnout.publish(client, OrderPlaced, { orderId: 'order-1', step: 1 });
    await client.query('commit');
    client.release();
    await holder.query('begin');
    await holder.query('select from turnout.rpc_delivery for update');
    const over: string[] = [];
    const delivering = w.turnout.deliver(published).then(() => over.push('deliver'));
    expect(await published.reply(w.email)).toMatchObject({ status: 'done', outcome: 'applied' });
    const closing = w.turnout.close().then(() => over.push('close'));
    expect(await w.from.owed()).toHaveLength(1);
    expect(over).toEqual([]);
    await holder.query('commit');
    holder.release();
    await Promise.all([delivering, closing]);
    expect(await w.from.owed()).toEqual([]);
  });

  test('calls though nobody asks for the reply', async () => {
    const w = await world();
    await place(w, 'order-1');
    await waitFor(async () => (await w.to.effects()).length === 1);
    await nothingOwed(w);
  });

  test('a refusal of the old endpoint is the answer, keeps nothing, and is final', async () => {
    const w = await world();
    w.to.behaviour.handler = (request, response, next) => {
      w.to.legacyPool
        .query('insert into effects (order_id, step) values ($1, 1)', [(request.body as { orderId: string }).orderId])
        .then(() => response.status(404).json({ error: 'no such customer' }), next);
    };
    const published = await place(w, 'order-1');
    expect(await published.reply(w.email)).toMatchObject({
      status: 'rejected',
      outcome: 'rejected',
      reply: { status: 404, body: { error: 'no such customer' } },
    });
    expect(await w.to.effects()).toEqual([]);
    await nothingOwed(w);
  });

  test('a rollback discards the call', async () => {
    const w = await world();
    const failing = w.turnout.transaction(async (tx) => {
      const published = await w.turnout.publish(tx, OrderPlaced, { orderId: 'order-1', step: 1 });
      closers.push(async () => {
        await expect(published.reply(w.email)).rejects.toSatisfy((error) =>
          isTurnoutError(error, 'TURNOUT_TRANSACTION_ABORTED'),
        );
      });
      throw new Error('no');
    });
    await expect(failing).rejects.toThrow('no');
    await place(w, 'order-2', 2);
    await waitFor(async () => (await w.to.effects()).length === 1);
    expect(await w.to.effects()).toEqual([2]);
  });

  test('with a transaction of the user, deliver makes the calls, and only if it was committed', async () => {
    const w = await world();
    const client = await w.from.pool.connect();
    try {
      await client.query('begin');
      const published = await w.turnout.publishAll(client, [
        occurrence(OrderPlaced, { orderId: 'order-1', step: 1 }),
        occurrence(OrderChanged, { orderId: 'order-1', step: 2 }),
      ]);
      await w.turnout.deliver(published);
      expect(await w.to.effects()).toEqual([]);
      await client.query('commit');
      await w.turnout.deliver(published);
      expect((await w.to.effects()).toSorted((a, b) => a - b)).toEqual([1, 2]);
      expect(await published[1]!.reply(w.email)).toMatchObject({ status: 'done', reply: { body: { step: 2 } } });
      await w.turnout.deliver(published);
      expect(w.to.seen).toHaveLength(2);
    } finally {
      client.release();
    }
  });

  test('an event that carries no route of a switchover has no reply', async () => {
    const w = await world();
    const undeclared = w.from.turnout([]);
    const published = await undeclared.transaction((tx) =>
      undeclared.publish(tx, OrderPlaced, { orderId: 'order-1', step: 1 }),
    );
    await expect(published.reply(w.email)).rejects.toSatisfy((error) =>
      isTurnoutError(error, 'TURNOUT_SWITCHOVER_UNKNOWN'),
    );
    expect(await w.from.owed()).toEqual([]);
  });

  test('a reply that takes too long is pending, and the call is kept', async () => {
    const w = await world({ timeoutMs: 200 });
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    const { handler } = w.to.behaviour;
    w.to.behaviour.handler = (request, response, next) => void gate.then(() => handler(request, response, next));
    const published = await place(w, 'order-1');
    expect(await published.reply(w.email, { timeoutMs: 50 })).toMatchObject({ status: 'pending' });
    expect(await published.reply(w.email)).toMatchObject({ status: 'pending', why: expect.stringContaining('200 ms') });
    expect(await w.from.owed()).toMatchObject([{ last_error: 'no answer within 200 ms' }]);
    go();
    await sweeping(w, [w.email]);
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([1]);
  });
});

describe('what stays owed', () => {
  test('a callee that is down: the order goes through, and the call is made later', async () => {
    const w = await world();
    await w.to.close();
    const published = await place(w, 'order-1');
    expect(await published.reply(w.email)).toMatchObject({
      status: 'pending',
      why: expect.stringContaining('ECONNREFUSED'),
    });
    expect((await w.from.pool.query('select from business')).rowCount).toBe(1);
    const sweeper = await sweeping(w, [w.email]);
    await waitFor(() => sweeper.counters().failed > 0);
    await w.to.reopen();
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([1]);
    expect(sweeper.counters()).toMatchObject({ redriven: 1, duplicates: 0 });
  });

  test('an answer that was lost after the effect: it is not had twice', async () => {
    const w = await world();
    let lose = true;
    w.to.behaviour.before = (request, response, next) => {
      if (lose) {
        const end = response.end.bind(response) as (...args: unknown[]) => unknown;
        // The commit is done, and the answer never arrives.
        response.end = ((...args: unknown[]) => (request.socket.destroy(), end(...args))) as typeof response.end;
      }
      lose = false;
      next();
    };
    const published = await place(w, 'order-1');
    expect(await published.reply(w.email)).toMatchObject({ status: 'pending' });
    expect(await w.to.effects()).toEqual([1]);
    const sweeper = await sweeping(w, [w.email]);
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([1]);
    expect(sweeper.counters()).toMatchObject({ redriven: 1, duplicates: 1 });
  });

  test('a success without an outcome is told, and not soon asked for again: it may be had each time', async () => {
    const w = await world();
    let effects = 0;
    // The service was rolled back to a version without the gate.
    w.to.behaviour.before = (_request, response) => {
      effects++;
      response.json({ sent: true });
    };
    const errors: [string, unknown][] = [];
    const logger = {
      info: () => undefined,
      warn: () => undefined,
      error: (text: string, fields: unknown) => void errors.push([text, fields]),
    };
    const careful = w.from.turnout([w.email], {
      logger,
      retry: { attempts: 1, firstDelayMs: 1, maxDelayMs: 1, uncertainDelayMs: 60_000 },
    });
    closers.push(() => careful.close());
    const publish = (orderId: string) =>
      careful.transaction((tx) => careful.publish(tx, OrderPlaced, { orderId, step: 1 }));
    expect(await (await publish('order-1')).reply(w.email)).toMatchObject({
      status: 'pending',
      why: "status 200 without the consumer's outcome",
    });
    expect(errors).toMatchObject([
      [expect.stringContaining('without the consumer’s outcome'), { switchover: 'order-email', againInMs: 60_000 }],
    ]);
    const { rows } = await w.from.pool.query(
      'select due_at > clock_timestamp() + make_interval(secs => 50) as later from turnout.rpc_delivery',
    );
    expect(rows).toEqual([{ later: true }]);
    // Ten minutes, if nobody says otherwise.
    const usual = w.from.turnout([w.email], { logger });
    closers.push(() => usual.close());
    const other = await usual.transaction((tx) => usual.publish(tx, OrderPlaced, { orderId: 'order-2', step: 1 }));
    await other.reply(w.email);
    expect(errors[1]).toMatchObject([expect.anything(), { againInMs: 600_000 }]);
    expect(effects).toBe(2);
    // Whoever has looked has it called again at once.
    w.to.behaviour.before = (_request, _response, next) => next();
    await sweeping(w, [w.email]);
    await w.from.pool.query('update turnout.rpc_delivery set due_at = clock_timestamp()');
    await nothingOwed(w);
  });

  test.each([404, 401, 500, 409, 425, 422, 302])('a %i that is not the gate’s ends no call', async (status) => {
    const w = await world();
    let foreign = true;
    // A proxy in front of the endpoint.
    w.to.behaviour.before = (_request, response, next) =>
      foreign ? void response.status(status).set('location', '/login').send('proxy') : next();
    const published = await place(w, 'order-1');
    expect(await published.reply(w.email)).toMatchObject({
      status: 'pending',
      why: `status ${status} without the consumer's outcome`,
    });
    expect(await w.from.owed()).toHaveLength(1);
    foreign = false;
    await sweeping(w, [w.email]);
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([1]);
  });

  test('a call that the function itself failed to make', async () => {
    const w = await world({ call: () => Promise.reject(new Error('no token')) });
    expect(await (await place(w, 'order-1')).reply(w.email)).toMatchObject({ status: 'pending', why: 'no token' });
    expect(await w.from.owed()).toMatchObject([{ last_error: 'no token', attempts: 1 }]);
  });

  test('what SQL published is called by the sweeper, without waiting', async () => {
    const w = await world();
    await w.from.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'order-1', '{"orderId": "order-1", "step": 7}', switchovers => '{order-email}')`,
    );
    await sweeping(w, [w.email]);
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([7]);
    expect(w.to.seen[0]!.body).toEqual({ orderId: 'order-1', step: 7 });
  });

  test('what was promised and not kept is called after twice the time-out, once', async () => {
    const w = await world({ timeoutMs: 100 });
    // A process that died right after its commit leaves exactly this.
    await w.from.pool.query(
      `select * from turnout.publish_events('orders', '[{"type":"orders.order-placed","version":1,"key":"order-1","data":{"orderId":"order-1","step":1}}]', '{order-email}', true)`,
    );
    expect(await w.from.owed()).toMatchObject([{ due: null }]);
    const sweepers = await Promise.all([sweeping(w, [w.email]), sweeping(w, [w.email])]);
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([1]);
    // Counted a moment after its row is gone.
    await waitFor(() => sweepers.reduce((sum, each) => sum + each.counters().redriven, 0) === 1);
  });

  test('rows of a switchover that it does not know are left alone', async () => {
    const w = await world();
    await w.from.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'order-1', '{"orderId": "order-1", "step": 7}', switchovers => '{order-email}')`,
    );
    const other = { ...w.email, name: 'other' };
    await sweeping(w, [other]);
    await w.from.pool.query('select pg_sleep(0.1)');
    expect(await w.from.owed()).toMatchObject([{ attempts: 0 }]);
  });

  test('two sweepers never make the same call at the same time', async () => {
    const inFlight = new Map<string, number>();
    let most = 0;
    let calls = 0;
    const w = await world({
      call: async (event, call) => {
        calls++;
        inFlight.set(event.id, (inFlight.get(event.id) ?? 0) + 1);
        most = Math.max(most, inFlight.get(event.id)!);
        await w.from.pool.query('select pg_sleep(0.005)');
        inFlight.set(event.id, inFlight.get(event.id)! - 1);
        return { status: 200, headers: { 'turnout-outcome': 'applied' }, body: call.effectKey };
      },
    });
    await w.from.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'order-' || n, '{"orderId": "x", "step": 1}', switchovers => '{order-email}') from generate_series(1, 60) n`,
    );
    const sweepers = await Promise.all([1, 2, 3].map(() => sweeping(w, [w.email])));
    await nothingOwed(w);
    expect({ most, calls }).toEqual({ most: 1, calls: 60 });
    // Counted a moment after its row is gone.
    await waitFor(() => sweepers.reduce((sum, each) => sum + each.counters().redriven, 0) === 60);
  });
});

describe('key numbers over calls', () => {
  test('calls of one key are made in order, one after the other', async () => {
    const w = await world({ order: 'key' });
    const published = [];
    for (let step = 1; step <= 8; step++)
      published.push(await place(w, 'order-1', step, step === 1 ? OrderPlaced : OrderChanged));
    const replies = await Promise.all(published.map((each) => each.reply(w.email)));
    expect(replies.map((reply) => reply.route === 'rpc' && reply.status)).toEqual(
      Array.from({ length: 8 }, () => 'done'),
    );
    expect(await w.to.effects()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    // None was ahead of another one.
    expect(w.to.requests()).toBe(8);
    await nothingOwed(w);
  });

  test('a call that is ahead brings the missing ones with it, whatever their route', async () => {
    const w = await world({ order: 'key' });
    // Two calls that were left behind by a crash, and two events that the consumer has not read.
    const publishSql = (step: number) =>
      w.from.pool.query(
        `select * from turnout.publish_events('orders', json_build_array(json_build_object('type', 'orders.order-changed', 'version', 1, 'key', 'order-1',
           'data', json_build_object('orderId', 'order-1', 'step', $1::int))), '{order-email}', true)`,
        [step],
      );
    await publishSql(1);
    await publishSql(2);
    await setStage(w.from.database, 'orders', w.email.name, 'event', { reason: 'test', force: true });
    await publishSql(3);
    await publishSql(4);
    await setStage(w.from.database, 'orders', w.email.name, 'rpc', { reason: 'back' });
    const published = await place(w, 'order-1', 5);
    expect(published.stamps[0]).toMatchObject({ route: 'rpc', epoch: 3, turn: { generation: 1, number: 5 } });
    expect(await published.reply(w.email)).toMatchObject({ status: 'done', outcome: 'applied' });
    expect(await w.to.effects()).toEqual([1, 2, 3, 4, 5]);
    await nothingOwed(w);
  });

  test('the sweeper makes the calls of a key in order', async () => {
    const w = await world({ order: 'key' });
    await w.from.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'order-' || n % 3, json_build_object('orderId', 'order-' || n % 3, 'step', n), switchovers => '{order-email}') from generate_series(1, 30) n`,
    );
    await Promise.all([sweeping(w, [w.email]), sweeping(w, [w.email])]);
    await nothingOwed(w);
    for (const rest of [0, 1, 2])
      expect(await w.to.effects(`order-${rest}`)).toEqual(
        Array.from({ length: 30 }, (_, i) => i + 1).filter((n) => n % 3 === rest),
      );
    // None was ahead of another one.
    expect(w.to.requests()).toBe(30);
  });

  test('a refusal consumes its number, and the next one follows', async () => {
    const w = await world({ order: 'key' });
    const { handler } = w.to.behaviour;
    w.to.behaviour.handler = (request, response, next) =>
      (request.body as { step: number }).step === 1
        ? void response.status(410).end()
        : handler(request, response, next);
    const one = await place(w, 'order-1', 1);
    const two = await place(w, 'order-1', 2);
    expect(await one.reply(w.email)).toMatchObject({ status: 'rejected' });
    expect(await two.reply(w.email)).toMatchObject({ status: 'done' });
    expect(await w.to.effects()).toEqual([2]);
  });

  test('a key that fails does not hold up others', async () => {
    const w = await world({ order: 'key' });
    const { handler } = w.to.behaviour;
    let broken = true;
    w.to.behaviour.handler = (request, response, next) =>
      broken && (request.body as { orderId: string }).orderId === 'bad'
        ? void response.status(500).end()
        : handler(request, response, next);
    const bad = [await place(w, 'bad', 1), await place(w, 'bad', 2)];
    const good = await place(w, 'good', 3);
    expect(await good.reply(w.email)).toMatchObject({ status: 'done' });
    expect(await bad[0]!.reply(w.email)).toMatchObject({ status: 'pending' });
    expect(await bad[1]!.reply(w.email)).toMatchObject({ status: 'pending' });
    broken = false;
    await sweeping(w, [w.email]);
    await nothingOwed(w);
    expect(await w.to.effects('bad')).toEqual([1, 2]);
  });
});

describe('stages', () => {
  test('a stage change takes effect with the next transaction, and explains itself', async () => {
    const w = await world();
    expect(
      await setStage(w.from.database, 'orders', w.email.name, 'event', { reason: 'a good week', force: true }),
    ).toBe(2);
    const published = await place(w, 'order-1');
    expect(published.stamps).toMatchObject([{ route: 'event', epoch: 2 }]);
    expect(await published.reply(w.email)).toEqual({ route: 'event' });
    expect(await w.from.owed()).toEqual([]);
    expect(await setStage(w.from.database, 'orders', w.email.name, 'event', { reason: 'again', force: true })).toBe(2);
    expect(await setStage(w.from.database, 'orders', w.email.name, 'rpc', { reason: 'too slow' })).toBe(3);
    expect(await (await place(w, 'order-2', 2)).reply(w.email)).toMatchObject({ route: 'rpc', status: 'done' });
    expect(await switchoverHistory(w.from.database, 'orders', w.email.name)).toMatchObject([
      { epoch: 1, from: undefined, to: 'rpc', reason: 'test', forced: false },
      {
        epoch: 2,
        from: 'rpc',
        to: 'event',
        reason: 'a good week',
        forced: true,
        actor: expect.any(String),
        at: expect.any(Date),
      },
      { epoch: 3, from: 'event', to: 'rpc', reason: 'too slow', forced: false },
    ]);
    expect(await switchoverStatus(w.from.database, 'orders')).toMatchObject([
      {
        name: 'order-email',
        consumer: 'email',
        stage: 'rpc',
        epoch: 3,
        owedCalls: 0,
        since: { orders: [0n, 0n, 0n] },
        undeclaredEvents: 0,
      },
    ]);
  });

  test('a call that was stamped is made as a call, whatever the stage is by then', async () => {
    const w = await world();
    await w.to.close();
    const published = await place(w, 'order-1');
    expect(await published.reply(w.email)).toMatchObject({ status: 'pending' });
    await setStage(w.from.database, 'orders', w.email.name, 'event', { reason: 'test', force: true });
    await w.to.reopen();
    await sweeping(w, [w.email]);
    await nothingOwed(w);
    expect(await w.to.effects()).toEqual([1]);
  });

  const refused = (w: World, stage: string, options: { reason: string; force?: boolean }) =>
    setStage(w.from.database, 'orders', w.email.name, stage, options).then(
      () => 'done',
      (error: unknown) => (isTurnoutError(error) ? error.code : error),
    );

  test('what is not allowed is refused with its code', async () => {
    const w = await world();
    expect(await refused(w, 'sideways', { reason: 'x' })).toBe('TURNOUT_STAGE_UNKNOWN');
    expect(await refused(w, 'ramp', { reason: 'x', force: true })).toBe('TURNOUT_PERCENT_INVALID');
    expect(await refused(w, 'done', { reason: 'x', force: true })).toBe('TURNOUT_STAGE_ORDER');
    expect(await refused(w, 'event', { reason: '  ', force: true })).toBe('TURNOUT_REASON_MISSING');
    expect(await refused(w, 'event', { reason: 'x' })).toBe('TURNOUT_CHECKS_MISSING');
    await w.from.pool.query('update turnout.switchover set since = null');
    expect(await refused(w, 'event', { reason: 'x', force: true })).toBe('TURNOUT_SINCE_MISSING');
    await w.from.pool.query(`update turnout.switchover set stage = 'done'`);
    expect(await refused(w, 'rpc', { reason: 'x' })).toBe('TURNOUT_STAGE_FINAL');
    await expect(setStage(w.from.database, 'orders', 'nobody', 'rpc', { reason: 'x' })).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_UNKNOWN',
    });
    await expect(switchoverStatus(w.from.database, 'orders', 'nobody')).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_UNKNOWN',
    });
    await expect(switchoverHistory(w.from.database, 'orders', 'nobody')).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_UNKNOWN',
    });
  });

  test('going on is refused while somebody publishes without declaring it', async () => {
    const w = await world();
    const undeclared = w.from.turnout([]);
    await undeclared.transaction((tx) => undeclared.publish(tx, OrderPlaced, { orderId: 'order-1', step: 1 }));
    expect(await switchoverStatus(w.from.database, 'orders')).toMatchObject([{ undeclaredEvents: 1 }]);
    expect(await refused(w, 'event', { reason: 'x' })).toBe('TURNOUT_UNDECLARED_PUBLISHERS');
    expect(await refused(w, 'event', { reason: 'x', force: true })).toBe('done');
    expect(await refused(w, 'rpc', { reason: 'x' })).toBe('done');
    // Long ago is over. (The outbox is append-only; a test may.)
    await w.from.pool.query(`update turnout.outbox set occurred_at = occurred_at - interval '6 minutes'`);
    expect(await refused(w, 'event', { reason: 'x' })).toBe('TURNOUT_CHECKS_MISSING');
  });

  test('transactions that are older than the switchover are waited for', async () => {
    const from = await producer();
    const older = await from.pool.connect();
    try {
      await older.query('begin');
      await older.query('insert into business values (null, 0)');
      const email = emailSwitchover(() => 'http://127.0.0.1:1');
      await from.register(email);
      expect(await createdXidFinished(from.database, 'orders', email.name)).toBe(false);
      await older.query('commit');
      expect(await createdXidFinished(from.database, 'orders', email.name)).toBe(true);
      await expect(createdXidFinished(from.database, 'orders', 'nobody')).rejects.toMatchObject({
        code: 'TURNOUT_SWITCHOVER_UNKNOWN',
      });
      // Registered again, nothing changes; the first start stands.
      await from.register(email);
      expect(await registerSwitchover(from.database, 'orders', email, 'again')).toBe(false);
      await expect(
        registerSwitchover(from.database, 'orders', { ...email, consumer: 'fax' }, 'x'),
      ).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_INVALID' });
    } finally {
      older.release();
    }
  });
});

describe('a switchover that gets another event type', () => {
  /** The switchover before and after, and what each call was made for. */
  async function extended() {
    const from = await producer();
    const called: string[] = [];
    const call = on(OrderPlaced, (event) => {
      called.push(event.type);
      return Promise.resolve({ status: 200, headers: { 'turnout-outcome': 'applied' }, body: {} });
    });
    const own = { name: 'order-email', consumer: 'email', order: 'key' } as const;
    const before = defineSwitchover({ ...own, rpc: [call] });
    const after = defineSwitchover({ ...own, rpc: [call, { ...call, event: OrderChanged }] });
    await from.register(before);
    const publisher = (switchover: SwitchoverDefinition) => {
      const turnout = from.turnout([switchover]);
      closers.push(() => turnout.close());
      return (event: typeof OrderPlaced | typeof OrderChanged) =>
        turnout.transaction(
          async (tx) => (await turnout.publishAll(tx, [{ event, data: { orderId: 'a', step: 1 } }]))[0]!,
        );
    };
    return { from, called, before, after, older: publisher(before), newer: publisher(after) };
  }

  test('new code fails rather than lose calls, until the type is registered', async () => {
    const { from, called, after, newer } = await extended();
    await expect(newer(OrderChanged)).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_TYPE_MISSING',
      details: { switchover: 'order-email', type: OrderChanged.name },
    });
    expect(await (await newer(OrderPlaced)).reply(after)).toMatchObject({ status: 'done' });
    await registerSwitchover(from.database, 'orders', after, 'cancellations too');
    expect(await (await newer(OrderChanged)).reply(after)).toMatchObject({ status: 'done' });
    expect(called).toEqual([OrderPlaced.name, OrderChanged.name]);
  });

  test('old code makes its own calls as before, and gets no stamps for them', async () => {
    const { from, called, before, after, older } = await extended();
    await registerSwitchover(from.database, 'orders', after, 'cancellations too');
    const published = await older(OrderChanged);
    expect(published.stamps).toEqual([]);
    expect(await (await older(OrderPlaced)).reply(before)).toMatchObject({ status: 'done' });
    expect(called).toEqual([OrderPlaced.name]);
    await waitFor(async () => (await from.owed()).length === 0, { what: 'no call to be owed' });
    // It is seen, and counted against a promotion.
    expect(await switchoverStatus(from.database, 'orders')).toMatchObject([{ undeclaredEvents: 1 }]);
    await expect(setStage(from.database, 'orders', after.name, 'event', { reason: 'x' })).rejects.toMatchObject({
      code: 'TURNOUT_UNDECLARED_PUBLISHERS',
    });
  });

  test('keeps those it has, and remembers when it got the others', async () => {
    const { from, before, after } = await extended();
    expect(await registerSwitchover(from.database, 'orders', after, 'cancellations too')).toBe(false);
    expect(await registerSwitchover(from.database, 'orders', after, 'again')).toBe(false);
    await expect(registerSwitchover(from.database, 'orders', before, 'an older configuration')).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_INVALID',
      message: expect.stringContaining(OrderChanged.name),
    });
    expect(await switchoverStatus(from.database, 'orders')).toMatchObject([
      { eventTypes: [OrderPlaced.name, OrderChanged.name], epoch: 1 },
    ]);
    expect(await switchoverHistory(from.database, 'orders', after.name)).toMatchObject([
      { to: 'rpc', reason: 'test' },
      { from: 'rpc', to: 'rpc', epoch: 1, reason: `cancellations too (event types added: ${OrderChanged.name})` },
    ]);
  });
});

describe('closing', () => {
  test('waits for calls in flight and leaves the others to the sweeper', async () => {
    const w = await world();
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    let entered = 0;
    const { handler } = w.to.behaviour;
    w.to.behaviour.handler = (request, response, next) => {
      entered++;
      void gate.then(() => handler(request, response, next));
    };
    const narrow = w.from.turnout([w.email], { concurrency: 1 });
    const publish = (step: number) =>
      narrow.transaction((tx) => narrow.publish(tx, OrderPlaced, { orderId: `order-${step}`, step }));
    const [one, two] = [await publish(1), await publish(2)];
    await waitFor(() => entered === 1);
    let closed = false;
    const closing = narrow.close().then(() => (closed = true));
    expect(await two.reply(w.email)).toMatchObject({ status: 'pending', why: expect.stringContaining('sweeper') });
    expect(closed).toBe(false);
    go();
    await closing;
    expect(await one.reply(w.email)).toMatchObject({ status: 'done' });
    expect(await w.from.owed()).toMatchObject([{ effect_key: `email.${two.id}`, due: null }]);
  });
});
