import { randomUUID } from 'node:crypto';
import type { ConsumerDefinition } from '../consumer/index.ts';
import { TurnoutError } from '../errors/index.ts';
import { effectKeyOf, validateEventData } from '../event/index.ts';
import type { EventDefinition, TurnoutEvent } from '../event/index.ts';

export interface TestHandlerOptions<Tx, Checked> {
  /** Looks at what the handler did, in its transaction, before that is rolled back. Runs only if the handler did not throw. */
  readonly check?: (tx: Tx) => Promise<Checked>;
  /** What the event is otherwise made up with: id, key, time, source `test`, no headers. */
  readonly event?: Partial<Pick<TurnoutEvent, 'id' | 'key' | 'time' | 'source' | 'headers'>>;
  /** Default 1. */
  readonly attempt?: number;
  /** Default: one that is never aborted. */
  readonly signal?: AbortSignal;
}

/** What came of it. */
export type HandlerRun<Checked> =
  | { readonly outcome: 'returned'; readonly value: unknown; readonly checked: Checked | undefined }
  | { readonly outcome: 'threw'; readonly error: unknown };

/**
 * Runs one handler of a consumer on one event, in a transaction that is rolled back: a test needs a database, no broker,
 * and leaves nothing behind. (What a detached handler does is not rolled back.)
 * Throws TURNOUT_EVENT_DATA_INVALID for data that could not have been published, TURNOUT_HANDLER_MISSING.
 *
 * @example
 * const run = await testHandler(loyalty, OrderPlaced, { orderId: 'o-1', customerId: 'c-1', total: 20 }, {
 *   check: async (tx) => (await tx.query('select points from account where id = $1', ['c-1'])).rows,
 * });
 * expect(run).toMatchObject({ outcome: 'returned', checked: [{ points: 20 }] });
 */
export async function testHandler<Tx, Input, Data, Checked = undefined>(
  consumer: ConsumerDefinition<Tx>,
  definition: EventDefinition<string, Input, Data>,
  data: NoInfer<Input>,
  options: TestHandlerOptions<NoInfer<Tx>, Checked> = {},
): Promise<HandlerRun<Checked>> {
  const reaction = consumer.handlers.find(
    ({ event }) => event.name === definition.name && event.version === definition.version,
  );
  if (reaction === undefined) {
    throw new TurnoutError(
      'TURNOUT_HANDLER_MISSING',
      `Consumer ${consumer.name} has no handler for ${definition.name} v${definition.version}.`,
      {
        details: { consumer: consumer.name, type: definition.name },
      },
    );
  }
  const valid = await validateEventData(definition, data);
  const event: TurnoutEvent<Data> = {
    id: randomUUID(),
    type: definition.name,
    version: definition.version,
    source: 'test',
    topic: definition.topic.name,
    key: definition.key?.(valid) ?? null,
    time: new Date(),
    headers: {},
    ...options.event,
    // As from a topic: the handler can't share objects with the test.
    data: JSON.parse(JSON.stringify(valid)) as Data,
  };
  const { attempt = 1, signal = new AbortController().signal } = options;
  const common = { attempt, signal, effectKey: effectKeyOf(consumer.name, event.id) };

  async function run(context: object, check: () => Promise<Checked | undefined>): Promise<HandlerRun<Checked>> {
    let value: unknown;
    try {
      value = await reaction!.react(event as TurnoutEvent<never>, context as never);
    } catch (error) {
      return { outcome: 'threw', error };
    }
    return { outcome: 'returned', value, checked: await check() };
  }

  if (consumer.mode === 'detached') return run(common, async () => undefined);
  try {
    return await consumer.database.transaction(async (tx) => {
      throw new RolledBack(await run({ ...common, tx }, async () => options.check?.(tx)));
    });
  } catch (error) {
    if (error instanceof RolledBack) return error.run as HandlerRun<Checked>;
    throw error;
  }
}

/** Carries the result out of the transaction that it rolls back. */
class RolledBack extends Error {
  readonly run: HandlerRun<unknown>;

  constructor(run: HandlerRun<unknown>) {
    super('The transaction of a handler under test is rolled back.');
    this.run = run;
  }
}
