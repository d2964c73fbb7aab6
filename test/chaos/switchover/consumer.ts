import type { Pool } from 'pg';
import { defineConsumer, on } from 'turnout';
import type { ConsumerDefinition } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { OrderChanged, OrderPlaced } from './services.ts';
import type { Order } from './services.ts';

interface Sql {
  query(text: string, values: unknown[]): Promise<unknown>;
}

/** What a service does with an event: the same as its old endpoint does with a call. */
export function consumerOf(name: string, pool: Pool): ConsumerDefinition {
  async function apply(tx: Sql, { customer, step }: Order): Promise<void> {
    await tx.query(`insert into effect (customer, step, path) values ($1, $2, 'event')`, [customer, step]);
    if (Math.random() < 0.02) throw new Error('The handler failed after it had written.');
  }
  return defineConsumer(pgDatabase(pool), {
    name,
    from: 'now',
    inSwitchover: [OrderPlaced, OrderChanged],
    // Nothing is parked by what is only bad luck: an operator would have to let it go on.
    retry: { attempts: 20, firstDelayMs: 50, maxDelayMs: 1_000 },
    graceMs: 2_000,
    handlers: [
      on(OrderPlaced, (event, { tx }) => apply(tx, event.data)),
      on(OrderChanged, (event, { tx }) => apply(tx, event.data)),
    ],
  });
}
