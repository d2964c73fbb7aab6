import type { Effect } from '../inbox/index.ts';

const effects = new WeakMap<object, Effect>();

/** What a detached handler returns if its effect did not simply happen; made by {@link endedAs}. */
export interface EndedEffect {
  readonly outcome: Effect['outcome'];
}

/**
 * For a detached handler to return: its effect has ended, and this is how. `rejected`: whoever was asked refused it for good, so it
 * isn't tried again, nor parked. `answer` (JSON) is kept in the inbox. A handler that returns anything else says `applied`.
 *
 * @example
 * on(OrderPlaced, async (event, { effectKey }) => {
 *   const answer = await crm.notify(event.data, { idempotencyKey: effectKey });
 *   if (answer.status === 422) return endedAs({ outcome: 'rejected', reason: 'no such customer', answer: answer.body });
 * });
 */
export function endedAs(effect: Effect): EndedEffect {
  const ended: EndedEffect = Object.freeze({ outcome: effect.outcome });
  effects.set(ended, effect);
  return ended;
}

/** The effect behind what a detached handler returned. */
export function effectOf(returned: unknown): Effect {
  const ended = typeof returned === 'object' && returned !== null ? effects.get(returned) : undefined;
  return ended ?? { outcome: 'applied' };
}
