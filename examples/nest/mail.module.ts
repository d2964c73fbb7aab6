// The e-mail application: an old controller, now behind a gate, and the consumer it moves to.
import { BadRequestException, Body, Controller, Inject, Module, Post } from '@nestjs/common';
import type { DynamicModule } from '@nestjs/common';
import type { Kafka } from 'kafkajs';
import { Pool } from 'pg';
import { createEndpoint, defineConsumer, drainHeld, on, runConsumer, silentLogger as logger } from 'turnout';
import type { Endpoint } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { SwitchedOver, TurnoutModule } from 'turnout/nestjs';
import { pgDatabase } from 'turnout/pg';
import { DatabaseModule } from './database.module.ts';
import { OrderPlaced } from './events.ts';
import type { Order } from './events.ts';

/** As it always was: it knows a pool, and nothing of transactions or events. */
export class Mailbox {
  readonly #pool: Pool;
  constructor(@Inject(Pool) pool: Pool) {
    this.#pool = pool;
  }

  async send({ orderId, customerId, number, item }: Order): Promise<{ mailId: string }> {
    const { rows } = await this.#pool.query<{ mailId: string }>(
      `insert into mail (order_id, customer_id, number, recipient, subject) values ($1, $2, $3, $4, $5)
       returning id::text as "mailId"`,
      [orderId, customerId, number, `${customerId}@example.org`, `Your ${item}`],
    );
    return rows[0]!;
  }
}

const MAIL_ENDPOINT = Symbol('mail endpoint');

@Controller('confirmations')
class ConfirmationsController {
  readonly #mailbox: Mailbox;
  constructor(@Inject(Mailbox) mailbox: Mailbox) {
    this.#mailbox = mailbox;
  }

  // `SwitchedOver` is what was added to it.
  @Post()
  @SwitchedOver(MAIL_ENDPOINT)
  confirm(@Body() order: Order): Promise<{ mailId: string }> {
    if (order.customerId === '') throw new BadRequestException('no customer');
    return this.#mailbox.send(order);
  }
}

/** The same effect from an event. */
const mailConsumer = (pool: Pool, mailbox: Mailbox) =>
  defineConsumer(pgDatabase(pool), {
    name: 'email',
    // A new mailer must not mail all history.
    from: 'now',
    inSwitchover: [OrderPlaced],
    handlers: [on(OrderPlaced, async (event) => void (await mailbox.send(event.data)))],
  });

const endpointOf = (pool: Pool, mailbox: Mailbox): Endpoint =>
  createEndpoint({
    consumer: 'email',
    database: pgDatabase(pool),
    order: 'key',
    // In real life: mutual TLS, or a signed token.
    authenticate: ({ headers }: { headers: { authorization?: string } }) =>
      headers.authorization === 'Bearer order-service',
    drain: drainHeld(mailConsumer(pool, mailbox)),
  });

/** The application; `pool` has to be joined (`joinPool`), so that the mailbox writes in the transaction of the gate. */
export function mailModule(pool: Pool, kafka: Kafka): DynamicModule {
  const database = DatabaseModule.forRoot(pool);
  return {
    module: MailModule,
    imports: [
      database,
      TurnoutModule.forRootAsync({
        imports: [database],
        inject: [Pool],
        // The consumer runs with the application.
        useFactory: (own: Pool) => ({
          services: [runConsumer(mailConsumer(own, new Mailbox(own)), { source: kafkaJs(kafka).source(), logger })],
        }),
      }),
    ],
  };
}

@Module({
  controllers: [ConfirmationsController],
  providers: [Mailbox, { provide: MAIL_ENDPOINT, inject: [Pool, Mailbox], useFactory: endpointOf }],
})
class MailModule {}
