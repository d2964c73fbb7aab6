import { defineSwitchover, on } from 'turnout';
import type { CheckRules } from 'turnout';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import { callsTo } from './calls.ts';
import type { Addresses } from './calls.ts';

/**
 * Overrides for these switchovers only: the demo has minutes, where a real one takes days. The defaults (docs/checks.md) ask for 100
 * deliveries, 299 comparisons without a difference, 20 effects, and 7 quiet days before `done`.
 */
const shortly: CheckRules = { minDeliveries: 40, maxMismatchPercent: 5, minEffects: 10, quietDays: 0 };

/** One switchover a consumer: each moves on its own, when its team is ready. `guarded: false` leaves stepping back to people. */
export function switchoversTo(addresses: Addresses, { guarded = true }: { readonly guarded?: boolean } = {}) {
  const calls = callsTo(addresses);
  const guardrails = { enabled: guarded };
  return {
    // A confirmation more or less early is no harm: no order, and so no waiting.
    email: defineSwitchover({
      name: 'order-confirmation',
      consumer: 'email',
      order: 'none',
      timeoutMs: 5_000,
      rpc: [on(OrderPlaced, calls.sendConfirmation)],
      // Nobody may promote it before it was seen that the event handler mails what the call does.
      checks: { ...shortly, decisions: 'required' },
      guardrails,
    }),
    // A cancellation must not overtake what it cancels, on whichever way.
    fulfilment: defineSwitchover({
      name: 'order-fulfilment',
      consumer: 'fulfilment',
      order: 'key',
      timeoutMs: 5_000,
      rpc: [on(OrderPlaced, calls.ship), on(OrderChanged, calls.ship), on(OrderCancelled, calls.stopShipping)],
      checks: shortly,
      guardrails,
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
      checks: shortly,
      guardrails,
    }),
  };
}

export type Switchovers = ReturnType<typeof switchoversTo>;
