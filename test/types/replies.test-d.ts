import { acceptedAnswer, createTurnout, defineEvent, defineSwitchover, on } from 'turnout';
import type { AnyEventDefinition, RpcAnswer, RpcCall, SwitchoverDefinition } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { pgDatabase } from 'turnout/pg';
import { Pool } from 'pg';
import { expectTypeOf, test } from 'vitest';
import { z } from 'zod';

const schema = z.object({ orderId: z.string() });
const OrderPlaced = defineEvent({ name: 'orders.order-placed', version: 1, topic: 'orders', schema, order: 'none' });
const ConfirmationSent = defineEvent({
  name: 'email.confirmation-sent',
  version: 1,
  topic: 'replies',
  schema: z.object({ mail: z.coerce.number() }),
  order: 'none',
});
const base = {
  name: 'order-email',
  consumer: 'email',
  order: 'none' as const,
  rpc: [on(OrderPlaced, (event, call: RpcCall) => rpcFetch(call, 'http://email', { json: event.data }))],
};

test('what a reply may be follows from the switchover', async () => {
  const answered = defineSwitchover({ ...base, reply: ConfirmationSent });
  const silent = defineSwitchover(base);
  expectTypeOf(answered).toExtend<SwitchoverDefinition>();
  const turnout = createTurnout({
    source: 'orders',
    database: pgDatabase(new Pool()),
    switchovers: [answered, silent],
  });
  const published = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, { orderId: 'order-1' }));

  const reply = await published.reply(answered);
  if (reply.status === 'pending') {
    expectTypeOf(reply.effectKey).toEqualTypeOf<string>();
    acceptedAnswer(reply);
  } else if (reply.route === 'event') expectTypeOf(reply.reply).toEqualTypeOf<{ mail: number }>();
  else expectTypeOf(reply.reply).toEqualTypeOf<RpcAnswer>();

  const none = await published.reply(silent);
  if (none.route === 'event') expectTypeOf(none).toEqualTypeOf<{ readonly route: 'event' }>();
  // @ts-expect-error Nobody replies by an event.
  if (none.route === 'event') void none.reply;
  // @ts-expect-error A reply is an event definition.
  defineSwitchover({ ...base, reply: 'sent' });
  expectTypeOf<typeof ConfirmationSent>().toExtend<AnyEventDefinition>();
});
