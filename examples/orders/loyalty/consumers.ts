import type { Pool } from 'pg';
import { defineConsumer, on } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import { creditOrder, revokeOrder } from './ledger.ts';

export const loyaltyConsumer = (pool: Pool) =>
  defineConsumer(pgDatabase(pool), {
    name: 'loyalty',
    from: 'now',
    inSwitchover: [OrderPlaced, OrderChanged, OrderCancelled],
    handlers: [
      on(OrderPlaced, async (event, { tx }) => void (await creditOrder(tx, event.data))),
      on(OrderChanged, async (event, { tx }) => void (await creditOrder(tx, event.data))),
      on(OrderCancelled, async (event, { tx }) => void (await revokeOrder(tx, event.data))),
    ],
  });
