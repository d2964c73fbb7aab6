// The order application: it used to call the e-mail application after each order, and now says so in a switchover.
import { randomUUID } from 'node:crypto';
import { Body, Controller, Inject, Module, Post } from '@nestjs/common';
import type { DynamicModule } from '@nestjs/common';
import type { Kafka } from 'kafkajs';
import { Pool } from 'pg';
import type { PoolClient } from 'pg';
import {
  createRelay,
  createTurnout,
  defineSwitchover,
  on,
  outboxKeeper,
  rpcSweeper,
  silentLogger as logger,
} from 'turnout';
import type { SwitchoverDefinition, Turnout } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { kafkaJs } from 'turnout/kafkajs';
import { InjectTurnout, TurnoutModule } from 'turnout/nestjs';
import { pgDatabase } from 'turnout/pg';
import { DatabaseModule } from './database.module.ts';
import { OrderPlaced } from './events.ts';

/** The call that was always made, with what the other side knows its effect by. */
export const confirmationAt = (mailUrl: string): SwitchoverDefinition =>
  defineSwitchover({
    name: 'order-confirmation',
    consumer: 'email',
    // A customer's confirmations come in the order of their orders.
    order: 'key',
    timeoutMs: 5_000,
    rpc: [
      on(OrderPlaced, (event, call) =>
        rpcFetch(call, `${mailUrl}/confirmations`, {
          json: event.data,
          headers: { authorization: 'Bearer order-service' },
        }),
      ),
    ],
  });

class OrderBook {
  readonly #turnout: Turnout<PoolClient>;
  constructor(@InjectTurnout() turnout: Turnout<PoolClient>) {
    this.#turnout = turnout;
  }

  /** One transaction: the order, and its event. */
  place({ customerId, item }: { customerId: string; item: string }): Promise<{ orderId: string }> {
    return this.#turnout.transaction(async (tx) => {
      const { rows } = await tx.query<{ number: number }>(
        `insert into customer (id, orders) values ($1, 1)
           on conflict (id) do update set orders = customer.orders + 1
         returning orders as number`,
        [customerId],
      );
      const order = { orderId: randomUUID(), customerId, number: rows[0]!.number, item };
      await tx.query('insert into "order" (id, customer_id, number, item) values ($1, $2, $3, $4)', [
        order.orderId,
        customerId,
        order.number,
        item,
      ]);
      await this.#turnout.publish(tx, OrderPlaced, order);
      return { orderId: order.orderId };
    });
  }
}

@Controller('orders')
class OrdersController {
  readonly #orders: OrderBook;
  constructor(@Inject(OrderBook) orders: OrderBook) {
    this.#orders = orders;
  }

  @Post()
  place(@Body() order: { customerId: string; item: string }): Promise<{ orderId: string }> {
    return this.#orders.place(order);
  }
}

/** The application. Relay, sweeper and keeper run with it; in production `turnout run` may run them instead. */
export function ordersModule(pool: Pool, kafka: Kafka, confirmation: SwitchoverDefinition): DynamicModule {
  const switchovers = [confirmation];
  return {
    module: OrdersModule,
    imports: [
      TurnoutModule.forRootAsync({
        imports: [DatabaseModule.forRoot(pool)],
        inject: [Pool],
        useFactory: (own: Pool) => {
          const database = pgDatabase(own);
          return {
            turnout: createTurnout({ source: 'orders', database, switchovers }),
            services: [
              outboxKeeper({ database, logger }),
              createRelay({ database, publisher: kafkaJs(kafka).publisher(), logger }),
              rpcSweeper({ source: 'orders', database, switchovers, logger }),
            ],
          };
        },
      }),
    ],
  };
}

@Module({ controllers: [OrdersController], providers: [OrderBook] })
class OrdersModule {}
