// Stage shadow from end to end, on PostgreSQL and Kafka: the call has the effect, the relay's copy comes, and a wrong template is found
// before anything was promoted. Consumer and endpoint run with the rights of `turnout_consumer` only.
import { Kafka, logLevel } from 'kafkajs';
import { Client } from 'pg';
import { expect, onTestFinished, test } from 'vitest';
import {
  compareWith,
  createEndpoint,
  createRelay,
  createTurnout,
  defineConsumer,
  defineEvent,
  defineSwitchover,
  defineTopic,
  on,
  recordSince,
  registerEvents,
  registerSwitchover,
  runConsumer,
  setStage,
  shadowReport,
  watchTable,
} from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool, pgDatabase } from 'turnout/pg';
import { z } from 'zod';
import { uniqueName, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database, sharedKafka } from '../support/vitest.ts';

const mailTemplate = {
  key: 'shadow mail',
  async prepare(url: string) {
    await migrated('consumer', 'roles').prepare(url);
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query(
      'create table mail (id bigint generated always as identity primary key, recipient text, template text); grant all on mail to turnout_consumer',
    );
    await client.end();
  },
};

test('a wrong template is found while calls have their effects', async () => {
  const { brokers } = await sharedKafka();
  const broker = kafkaJs(new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING }));
  const topic = uniqueName('shadow');
  const name = uniqueName('email').replaceAll('_', '-');
  const OrderPlaced = defineEvent({
    name: 'shop.order-placed',
    version: 1,
    topic: defineTopic({ name: topic, partitions: 1 }),
    schema: z.object({ orderId: z.string(), email: z.string() }),
    key: (order) => order.orderId,
  });

  const mail = await database({ template: mailTemplate });
  const owner = mail.pool({ max: 2 });
  await watchTable(owner, 'mail');
  const service = mail.pool({ max: 8, options: '-c role=turnout_consumer' });
  expect((await service.query('select current_user::text as who')).rows).toEqual([{ who: 'turnout_consumer' }]);
  const legacy = joinPool(service);
  const definition = defineConsumer(pgDatabase(service), {
    name,
    from: 'beginning',
    inSwitchover: [OrderPlaced],
    handlers: [
      on(OrderPlaced, async ({ data }, { tx }) => {
        const template = data.orderId === 'order-2' ? 'placd' : 'placed';
        await tx.query('insert into mail (recipient, template) values ($1, $2)', [data.email, template]);
      }),
    ],
  });
  const endpoint = createEndpoint({
    consumer: name,
    database: pgDatabase(service),
    order: 'key',
    shadow: compareWith(definition, { pure: true, timeoutMs: 10_000, show: ['**.template'] }),
  });

  const shop = (await database({ template: migrated('producer') })).pool({ max: 8 });
  const shopDatabase = pgDatabase(shop);
  const confirmation = defineSwitchover({
    name: 'confirmation',
    consumer: name,
    order: 'key',
    rpc: [
      on(OrderPlaced, async (event, call) => {
        const request = { original: undefined, headers: call.headers, body: async () => event.data };
        const given = await endpoint.answer(request, async () => {
          await legacy.query("insert into mail (recipient, template) values ($1, 'placed')", [event.data.email]);
          return { status: 200, headers: {}, body: Buffer.from('{}') };
        });
        if (given.kind === 'pass') throw new Error('The call had no headers.');
        const answer = given.kind === 'handler' ? given.answer : given;
        return { status: answer.status, headers: { ...given.headers } as Record<string, string>, body: {} };
      }),
    ],
  });
  await broker.topics().create([{ name: topic, partitions: 1 }]);
  await registerEvents(shopDatabase, 'shop', [OrderPlaced]);
  await registerSwitchover(shopDatabase, 'shop', confirmation, 'test');
  await recordSince(shopDatabase, 'shop', 'confirmation', { [topic]: [0n] });
  await setStage(shopDatabase, 'shop', 'confirmation', 'shadow', { reason: 'test', force: true });

  const relay = createRelay({ database: shopDatabase, publisher: broker.publisher() });
  const consumer = runConsumer(definition, { source: broker.source() });
  await relay.start();
  onTestFinished(() => relay.stop());
  await consumer.start();
  onTestFinished(() => consumer.stop());

  const turnout = createTurnout({ source: 'shop', database: shopDatabase, switchovers: [confirmation] });
  onTestFinished(() => turnout.close());
  for (const orderId of ['order-1', 'order-2', 'order-3']) {
    const published = await turnout.transaction((tx) =>
      turnout.publish(tx, OrderPlaced, { orderId, email: `${orderId}@example.org` }),
    );
    expect(await published.reply(confirmation, { timeoutMs: 30_000 })).toMatchObject({
      status: 'done',
      outcome: 'applied',
    });
  }

  await waitFor(
    async () => {
      const { deliveries, decisions } = await shadowReport(owner, name);
      return deliveries.arrived === 3 && decisions.compared === 3;
    },
    { what: 'three deliveries and three comparisons', deadlineMs: 40_000 },
  );
  expect(await shadowReport(owner, name)).toMatchObject({
    sinceWhy: 'stage',
    deliveries: { expected: 3, missing: 0, undecodable: 0, outOfOrder: 0 },
    decisions: { matched: 2, mismatched: 1, failed: 0 },
    groups: [
      {
        paths: ['writes.mail.*.insert.template: other value'],
        example: {
          expected: { writes: { mail: [{ insert: { template: 'placed' } }] } },
          actual: { writes: { mail: [{ insert: { template: 'placd' } }] } },
        },
      },
    ],
  });
  expect((await owner.query('select template from mail')).rows).toEqual(
    ['placed', 'placed', 'placed'].map((template) => ({ template })),
  );
});
