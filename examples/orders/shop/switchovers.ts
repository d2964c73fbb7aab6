import { defineSwitchover, on } from 'turnout';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import { callsTo } from './calls.ts';
import type { Addresses } from './calls.ts';

/** One switchover a consumer: each moves on its own, when its team is ready. */
export function switchoversTo(addresses: Addresses) {
  const calls = callsTo(addresses);
  return {
    // A confirmation more or less early is no harm: no order, and so no waiting.
    email: defineSwitchover({
      name: 'order-confirmation',
      consumer: 'email',
      order: 'none',
      timeoutMs: 5_000,
      rpc: [on(OrderPlaced, calls.sendConfirmation)],
    }),
    // A cancellation must not overtake what it cancels, on whichever way.
    fulfilment: defineSwitchover({
      name: 'order-fulfilment',
      consumer: 'fulfilment',
      order: 'key',
      timeoutMs: 5_000,
      rpc: [on(OrderPlaced, calls.ship), on(OrderChanged, calls.ship), on(OrderCancelled, calls.stopShipping)],
    }),
    loyalty: defineSwitchover({
      name: 'order-points',
      consumer: 'loyalty',
      order: 'key',
      timeoutMs: 5_000,
      rpc: [
        on(OrderPlaced, calls.addPoints),
        on(OrderChanged, calls.addPoints),
        on(OrderCancelled, calls.removePoints),
      ],
    }),
  };
}

export type Switchovers = ReturnType<typeof switchoversTo>;
