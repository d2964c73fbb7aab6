import type { AnyEventDefinition, EventDefinition } from './define-event.ts';

/** An event as handlers and calls are given it. */
export interface TurnoutEvent<Data = unknown> {
  readonly id: string;
  readonly type: string;
  readonly version: number;
  readonly source: string;
  readonly topic: string;
  readonly key: string | null;
  /** When it was published, by the clock of the producer's database. */
  readonly time: Date;
  readonly data: Data;
  /** The publisher's own headers. */
  readonly headers: Readonly<Record<string, string>>;
}

/** An event type and what is done with its events; made by {@link on}. */
export interface Reaction<Context, Result = unknown> {
  readonly event: AnyEventDefinition;
  readonly react: (event: TurnoutEvent<never>, context: Context) => Promise<Result> | Result;
}

/**
 * Binds a function to an event type; its types are inferred from the definition.
 *
 * @example
 * on(OrderPlaced, async (event, { tx }) => {
 *   await tx.query('insert into mail (order_id) values ($1)', [event.data.orderId]);
 * });
 */
export function on<Name extends string, Input, Data, Context, Result>(
  event: EventDefinition<Name, Input, Data>,
  react: (event: TurnoutEvent<Data>, context: Context) => Promise<Result> | Result,
): Reaction<Context, Result> {
  return { event, react };
}
