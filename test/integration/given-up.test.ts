// What was given up at the consumer, before its call was made again: whoever asks is not told that it was done.
import { expect, onTestFinished, test } from 'vitest';
import { consumer, emailSwitchover, OrderPlaced, producer } from './fixtures/switchover-world.ts';

test.each(['dead', 'skipped'] as const)(
  'an effect that is %s is told as rejected, to callers and to those who wait elsewhere',
  async (outcome) => {
    const [from, to] = await Promise.all([producer(), consumer({ order: 'none' })]);
    onTestFinished(() => to.close());
    const email = { ...emailSwitchover(() => to.url), reply: OrderPlaced };
    await from.register(email);
    const turnout = from.turnout([email]);
    onTestFinished(() => turnout.close());
    let published: Awaited<ReturnType<typeof turnout.publish>>;
    await turnout.transaction(async (tx) => {
      published = await turnout.publish(tx, OrderPlaced, { orderId: 'order-1', step: 1 });
      // As an operator or a consumer that gave it up has left it.
      await to.pool.query(
        `select turnout.record_outcome('email', $1, $2, $3, $4, 'orders', 'orders', 'order-1', null, null, 'event', $5, null, null, 'template gone', 12)`,
        [`email.${published.id}`, published.time, published.id, OrderPlaced.name, outcome],
      );
    });
    expect(await published!.reply(email)).toMatchObject({ route: 'rpc', status: 'rejected', outcome });
    expect(await turnout.replyStatus(`email.${published!.id}`)).toMatchObject({
      status: 'rejected',
      route: 'rpc',
      outcome,
    });
    expect(await to.effects()).toEqual([]);
    expect(await from.owed()).toEqual([]);
  },
);
