import { randomInt } from 'node:crypto';
import { expect, onTestFinished, test } from 'vitest';
import {
  createRelay,
  createTurnout,
  defineConsumer,
  on,
  outboxKeeper,
  rpcSweeper,
  runConsumer,
  setStage,
  silentLogger,
} from 'turnout';
import { inMemoryBroker } from 'turnout/testing';
import { applyTopics } from '../../src/relay/index.ts';
import { waitFor } from '../support/index.ts';
import { consumer, emailSwitchover, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';

test.each(['key', 'none'] as const)(
  'all parts together, order %s: flips, failing calls and an old version beside the new one; each effect once',
  async (order) => {
    const [from, to] = await Promise.all([producer(), consumer({ order })]);
    const email = emailSwitchover(() => to.url, { order, timeoutMs: 1_000 });
    await from.register(email);
    const broker = inMemoryBroker();
    await applyTopics(broker.topics(), [OrderPlaced, OrderChanged]);
    const quick = { attempts: 1, firstDelayMs: 10, maxDelayMs: 50 };
    const turnout = from.turnout([email], { retry: quick });
    const definition = defineConsumer(to.database, {
      name: 'email',
      from: 'beginning',
      inSwitchover: [OrderPlaced, OrderChanged],
      handlers: [
        on(OrderPlaced, async (event, { tx }) => {
          await tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [
            event.data.orderId,
            event.data.step,
            'event',
          ]);
        }),
        on(OrderChanged, async (event, { tx }) => {
          await tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [
            event.data.orderId,
            event.data.step,
            'event',
          ]);
        }),
      ],
    });
    const services = [
      outboxKeeper({ database: from.database }),
      rpcSweeper({ source: 'orders', database: from.database, switchovers: [email], pollMs: 10, retry: quick }),
      createRelay({ database: from.database, publisher: broker.publisher(), logger: silentLogger }),
      runConsumer(definition, { source: broker.source(), sweepEveryMs: 50 }),
    ];
    onTestFinished(async () => {
      await turnout.close();
      for (const service of services.toReversed()) await service.stop();
      await to.close();
    });
    for (const service of services) await service.start();

    // Calls break off now and then, before the effect and after it.
    to.behaviour.before = (request, response, next) => {
      const dice = randomInt(12);
      if (request.headers['turnout-consumer'] !== undefined) {
        if (dice === 0) return void request.socket.destroy();
        if (dice === 1) {
          const end = response.end.bind(response) as (...args: unknown[]) => unknown;
          response.end = ((...args: unknown[]) => (request.socket.destroy(), end(...args))) as typeof response.end;
        }
      }
      next();
    };

    const keys = ['a', 'b', 'c', 'd', 'e'];
    const perKey = 20;
    let publishing = true;
    const publishers = keys.map(async (orderId) => {
      for (let step = 1; step <= perKey; step++) {
        await turnout.transaction((tx) =>
          turnout.publish(tx, step === 1 ? OrderPlaced : OrderChanged, { orderId, step }),
        );
        await from.pool.query('select pg_sleep(0.01)');
      }
    });
    // A process of the version before: it publishes for others and makes its call by itself.
    const old = (async () => {
      const undeclared = createTurnout({ source: 'orders', database: from.database });
      for (let step = 1; step <= perKey; step++) {
        await undeclared.transaction((tx) => undeclared.publish(tx, OrderPlaced, { orderId: 'old', step }));
        await fetch(to.url, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ orderId: 'old', step }),
        });
      }
    })();
    const flips = (async () => {
      for (let flip = 0; publishing; flip++) {
        await setStage(from.database, 'orders', email.name, flip % 2 === 0 ? 'event' : 'rpc', {
          reason: `flip ${flip}`,
          force: true,
        });
        await from.pool.query('select pg_sleep(0.05)');
      }
    })();
    await Promise.all([...publishers, old]);
    publishing = false;
    await flips;

    const total = (keys.length + 1) * perKey;
    await waitFor(async () => (await from.owed()).length === 0, { what: 'no call to be owed', deadlineMs: 30_000 });
    await waitFor(async () => (await to.effects()).length >= total, { what: 'all effects', deadlineMs: 30_000 });
    // Until the copies of all that went by call have been passed by, too.
    await waitFor(
      async () => {
        const { rows } = await to.pool.query<{ n: string }>(
          'select coalesce(sum(p.next_offset), 0)::text as n from turnout.position p',
        );
        return Number(rows[0]!.n) === total;
      },
      { what: 'all copies to be read', deadlineMs: 30_000 },
    );
    for (const key of [...keys, 'old']) {
      const effects = await to.effects(key);
      if (order === 'none') effects.sort((a, b) => a - b);
      expect({ key, effects }).toEqual({ key, effects: Array.from({ length: perKey }, (_, index) => index + 1) });
    }
    const { rows: paths } = await to.pool.query('select distinct i.path from turnout.inbox i order by i.path');
    expect(paths).toEqual([{ path: 'event' }, { path: 'rpc' }]);
    expect((await to.pool.query('select from turnout.held')).rowCount).toBe(0);
    expect((await to.pool.query('select kind, detail from turnout.alarm')).rows).toEqual([]);
  },
);
