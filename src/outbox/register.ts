import type { Database } from '../database/index.ts';
import { fromDatabaseError, TurnoutError } from '../errors/index.ts';
import type { AnyEventDefinition } from '../event/index.ts';
import { isName } from '../event/index.ts';

/**
 * Makes a source, its event types and their topics known to the outbox; nothing else can be published. May be called
 * again and again; what is already there is left as it is, except that a topic's `maxBytes` follows its definition.
 * Throws TURNOUT_TOPIC_PARTITIONS_CHANGED, TURNOUT_EVENT_TYPE_CHANGED, TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * await registerEvents(database, 'orders', [OrderPlaced, OrderCancelled]);
 */
export async function registerEvents(
  database: Database,
  source: string,
  events: readonly AnyEventDefinition[],
): Promise<void> {
  if (!isName(source)) {
    throw new TurnoutError('TURNOUT_DEFINITION_INVALID', `${JSON.stringify(source)} can't be the name of a source.`, {
      details: { path: 'source' },
    });
  }
  const topics = new Map(events.map(({ topic }) => [topic.name, topic]));
  for (const { name, topic } of events) checkSame(name, topic, topics.get(topic.name)!);
  const types = events.map(({ name, version, topic, aggregate, order }) => ({
    name,
    version,
    topic: topic.name,
    aggregate,
    ordering: order,
  }));
  try {
    await database.query('select turnout.register_events($1, $2::text::jsonb, $3::text::jsonb)', [
      source,
      JSON.stringify([...topics.values()]),
      JSON.stringify(types),
    ]);
  } catch (error) {
    throw fromDatabaseError(error);
  }
}

/** Two event types can name the same topic each in its own way; they must say the same of it. */
function checkSame(event: string, topic: AnyEventDefinition['topic'], other: AnyEventDefinition['topic']): void {
  if (topic.partitions === other.partitions && topic.maxBytes === other.maxBytes) return;
  throw new TurnoutError(
    'TURNOUT_DEFINITION_INVALID',
    `Event ${event} defines topic ${topic.name} otherwise than another event does.`,
    {
      details: { path: `${event}.topic`, topic: topic.name },
    },
  );
}
