import { AsyncLocalStorage } from 'node:async_hooks';

const described = new AsyncLocalStorage<unknown[]>();
/** More effects of one call than this are not told apart from others. */
const mostEffects = 1_000;

/**
 * Says, in an old handler, what it does and can't be compared by its writes: it sends this e-mail, it calls that API. In stage
 * shadow it is compared with what the event handler's `plan` says; everywhere else this does nothing.
 *
 * @example
 * describeEffect({ to: order.email, template: 'order-confirmation' });
 * await smtp.send(mail);
 */
export function describeEffect(effect: unknown): void {
  const effects = described.getStore();
  // A copy: what becomes of the object later is no part of what was said.
  if (effects !== undefined && effects.length < mostEffects) effects.push(copyOf(effect));
}

function copyOf(effect: unknown): unknown {
  try {
    return JSON.parse(JSON.stringify(effect ?? null)) as unknown;
  } catch {
    return '<can’t be described as JSON>';
  }
}

/** Runs an old handler and gathers what it describes. */
export function gathering<Result>(effects: unknown[], work: () => Promise<Result>): Promise<Result> {
  return described.run(effects, work);
}
