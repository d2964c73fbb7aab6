import { defineConsumer } from '../../consumer/index.ts';
import type { ConsumerDefinition, HandlerContext } from '../../consumer/index.ts';
import type { Database } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { on } from '../../event/index.ts';
import type { AnyEventDefinition, EventDefinition, Reaction } from '../../event/index.ts';
import type { SwitchoverDefinition } from '../define-switchover.ts';
import { recordReply } from './reply-store.ts';
import { replyHeader } from './reply-to.ts';

/**
 * The consumer that brings replies home: an ordinary one, for `turnout consume` or `runConsumer`, that writes reply events to
 * the producer's database (which needs the migrations of consumers too). One a service is enough: any of its processes may wait.
 *
 * It starts at the beginning of its topics, so that what was answered before it first ran is there; replies to what this
 * database did not publish are left alone, so a long history costs a read and no rows but those of the inbox.
 * Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * export const replies = replyConsumer(database, { name: 'orders-replies', switchovers: [confirmation] });
 */
export function replyConsumer<Tx>(
  database: Database<Tx>,
  {
    name,
    switchovers,
    retentionMs,
  }: {
    /** Also the name of its group at the broker. */
    readonly name: string;
    /** Those with a `reply`; others are left out. */
    readonly switchovers: readonly SwitchoverDefinition[];
    /** How long its inbox keeps outcomes, in milliseconds; as of any consumer. */
    readonly retentionMs?: number;
  },
): ConsumerDefinition<Tx> {
  const events = new Map<string, AnyEventDefinition>();
  for (const { reply } of switchovers) if (reply !== undefined) events.set(`${reply.name} v${reply.version}`, reply);
  if (events.size === 0) {
    throw new TurnoutError('TURNOUT_DEFINITION_INVALID', `None of the switchovers of ${name} has a reply.`, {
      details: { path: 'switchovers' },
    });
  }
  return defineConsumer(database, {
    name,
    from: 'beginning',
    handlers: [...events.values()].map((event) => keep(database, event)),
    ...(retentionMs === undefined ? {} : { retentionMs }),
  });
}

function keep<Tx>(database: Database<Tx>, definition: AnyEventDefinition): Reaction<HandlerContext<Tx>> {
  return on(definition as EventDefinition, async ({ id, type, data, headers }, { tx }: HandlerContext<Tx>) => {
    const effectKey = headers[replyHeader];
    // Without it the event is a fact like any other, and answers nobody.
    if (effectKey !== undefined) await recordReply(database.within(tx), effectKey, { id, type, data });
  });
}
