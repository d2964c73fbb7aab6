import type { Pool } from 'pg';
import { defineConsumer, on } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import { ship, stopShipping } from './warehouse.ts';

/** New code takes the transaction that it is handed. */
export const fulfilmentConsumer = (pool: Pool) =>
  defineConsumer(pgDatabase(pool), {
    name: 'fulfilment',
    from: 'now',
    inSwitchover: [OrderPlaced, OrderChanged, OrderCancelled],
    handlers: [
      on(OrderPlaced, (event, { tx }) => ship(tx, event.data)),
      on(OrderChanged, (event, { tx }) => ship(tx, event.data)),
      on(OrderCancelled, (event, { tx }) => stopShipping(tx, event.data)),
    ],
  });
