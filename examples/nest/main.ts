// npm run example:nest [-- --json]
import 'reflect-metadata';
import type { INestApplication } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import { applyTopics, recordSince, registerEvents, registerSwitchover } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool, pgDatabase } from 'turnout/pg';
import { startParts } from '../parts.ts';
import { run, thereAndBack } from '../there-and-back.ts';
import { OrderPlaced } from './events.ts';
import { mailModule } from './mail.module.ts';
import { confirmationAt, ordersModule } from './orders.module.ts';

await run(async (say) => {
  say('Starting PostgreSQL and Apache Kafka');
  const parts = await startParts();
  const endings: (() => Promise<unknown>)[] = [() => parts.stop()];
  const serve = async (app: INestApplication): Promise<string> => {
    endings.push(() => app.close());
    await app.listen(0, '127.0.0.1');
    return app.getUrl();
  };
  try {
    const ordersPool = parts.orders.pool({ max: 10 });
    const database = pgDatabase(ordersPool);

    // What a deployment does once: `turnout topics apply`, `turnout switch order-confirmation rpc`.
    await registerEvents(database, 'orders', [OrderPlaced]);
    await applyTopics(kafkaJs(parts.kafka).topics(), [OrderPlaced]);

    // The e-mail application, on Fastify; the order application, on Express.
    const mailPool = joinPool(parts.mail.pool({ max: 10 }));
    const mailUrl = await serve(
      await NestFactory.create(mailModule(mailPool, parts.kafka), new FastifyAdapter(), { logger: false }),
    );
    const confirmation = confirmationAt(mailUrl);
    await registerSwitchover(database, 'orders', confirmation, 'the example begins');
    await recordSince(database, 'orders', confirmation.name, {
      [OrderPlaced.topic.name]: Array.from({ length: OrderPlaced.topic.partitions }, () => 0n),
    });
    const ordersUrl = await serve(
      await NestFactory.create(ordersModule(ordersPool, parts.kafka, confirmation), new ExpressAdapter(), {
        logger: false,
      }),
    );

    const placeOrder = async (order: { customerId: string; item: string }): Promise<void> => {
      const response = await fetch(`${ordersUrl}/orders`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(order),
      });
      if (!response.ok) throw new Error(`POST /orders was answered ${response.status}: ${await response.text()}`);
    };
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
