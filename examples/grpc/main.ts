// npm run example:grpc [-- --json]
import { credentials } from '@grpc/grpc-js';
import {
  applyTopics,
  createRelay,
  createTurnout,
  outboxKeeper,
  recordSince,
  registerEvents,
  registerSwitchover,
  rpcSweeper,
  runConsumer,
  silentLogger as logger,
} from 'turnout';
import type { Service } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool, pgDatabase } from 'turnout/pg';
import { startParts } from '../parts.ts';
import { run, thereAndBack } from '../there-and-back.ts';
import { OrderPlaced } from './events.ts';
import { mailConsumer, serveMailer } from './mailer.ts';
import { confirmationBy, placeOrderWith } from './orders.ts';
import { Mailer } from './protocol.ts';

await run(async (say) => {
  say('Starting PostgreSQL and Apache Kafka');
  const parts = await startParts();
  const endings: (() => unknown)[] = [() => parts.stop()];
  try {
    const broker = kafkaJs(parts.kafka);

    // The e-mail service. Joined: what it writes while Turnout has a transaction open is part of that.
    const mailPool = joinPool(parts.mail.pool({ max: 10 }));
    const server = await serveMailer(mailPool);
    endings.push(() => server.close());

    // The order service.
    const ordersPool = parts.orders.pool({ max: 10 });
    const database = pgDatabase(ordersPool);
    const mailer = new Mailer(`127.0.0.1:${server.port}`, credentials.createInsecure());
    endings.push(() => mailer.close());
    const confirmation = confirmationBy(mailer);
    const turnout = createTurnout({ source: 'orders', database, switchovers: [confirmation] });
    endings.push(() => turnout.close());

    // What a deployment does once: `turnout topics apply`, `turnout switch order-confirmation rpc`.
    await registerEvents(database, 'orders', [OrderPlaced]);
    await applyTopics(broker.topics(), [OrderPlaced]);
    await registerSwitchover(database, 'orders', confirmation, 'the example begins');
    await recordSince(database, 'orders', confirmation.name, {
      [OrderPlaced.topic.name]: Array.from({ length: OrderPlaced.topic.partitions }, () => 0n),
    });

    // `turnout run` and `turnout consume email`, here in this process.
    const services: readonly Service[] = [
      outboxKeeper({ database, logger }),
      createRelay({ database, publisher: broker.publisher(), logger }),
      rpcSweeper({ source: 'orders', database, switchovers: [confirmation], logger }),
      runConsumer(mailConsumer(mailPool), { source: broker.source(), logger }),
    ];
    for (const service of services) {
      await service.start();
      endings.push(() => service.stop());
    }

    const placeOrder = placeOrderWith(turnout);
    return await thereAndBack(
      {
        switchover: confirmation.name,
        orders: parts.orders.pool({ max: 3 }),
        mail: parts.mail.pool({ max: 3 }),
        placeOrder,
      },
      say,
    );
  } finally {
    for (const end of endings.reverse()) await end();
  }
});
