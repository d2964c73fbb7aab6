import type { EventDefinition, Reaction, TurnoutEvent } from '../event/index.ts';

/** A handler that says what it would do before it does it; made by {@link planned}. */
export interface PlannedReaction<Context> extends Reaction<Context> {
  readonly plan: (event: TurnoutEvent<never>, context: Context) => readonly unknown[] | Promise<readonly unknown[]>;
}

/**
 * Binds an event type to a handler in two steps: `plan` says what is to be done, as plain data, and does nothing; `perform` does
 * it. In stage shadow only `plan` runs, and what it says is compared with what the old handler tells by `describeEffect`.
 * For handlers whose effects can't be taken back with a transaction.
 *
 * @example
 * planned(OrderPlaced, {
 *   plan: (event) => [{ to: event.data.email, template: 'order-confirmation' }],
 *   perform: async (mails, { effectKey }) => {
 *     for (const mail of mails) await smtp.send(mail, { messageId: effectKey });
 *   },
 * });
 */
export function planned<Name extends string, Input, Data, Context, Effect>(
  event: EventDefinition<Name, Input, Data>,
  steps: {
    readonly plan: (event: TurnoutEvent<Data>, context: Context) => readonly Effect[] | Promise<readonly Effect[]>;
    readonly perform: (effects: readonly Effect[], context: Context) => unknown;
  },
): PlannedReaction<Context> {
  const { plan, perform } = steps;
  return {
    event,
    plan,
    react: async (occurred: TurnoutEvent<Data>, context: Context) => perform(await plan(occurred, context), context),
  };
}

/** Whether a handler says what it would do. */
export function isPlanned<Context>(reaction: Reaction<Context>): reaction is PlannedReaction<Context> {
  return 'plan' in reaction && typeof reaction.plan === 'function';
}
