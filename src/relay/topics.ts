import { TurnoutError } from '../errors/index.ts';
import type { AnyEventDefinition, TopicDefinition } from '../event/index.ts';
import type { TopicAdmin, TopicDescription } from './topic-admin.ts';

/** What is to be done, or was done, about a topic. */
export interface TopicChange {
  readonly topic: string;
  readonly partitions: number;
  readonly change: 'created' | 'unchanged';
}

/**
 * Creates the topics of event definitions that the broker doesn't have; with `dryRun` it only says which. Existing topics are
 * compared and left as they are. Nothing is created if anything is wrong: throws TURNOUT_PARTITIONS_MISMATCH for a topic that
 * has another partition count, TURNOUT_DEFINITION_INVALID for one that is defined in two ways, TURNOUT_BROKER_UNREACHABLE.
 *
 * @example
 * const changes = await applyTopics(kafkaJsTopics(kafka), [OrderPlaced, OrderCancelled], { dryRun: true });
 */
export async function applyTopics(
  admin: TopicAdmin,
  events: readonly AnyEventDefinition[],
  options: { readonly dryRun?: boolean } = {},
): Promise<TopicChange[]> {
  const topics = topicsOf(events);
  const changes = planTopics(topics, await admin.describe(topics.map(({ name }) => name)));
  const missing = changes.filter(({ change }) => change === 'created');
  if (options.dryRun !== true && missing.length > 0) {
    await admin.create(missing.map(({ topic, partitions }) => ({ name: topic, partitions })));
  }
  return changes;
}

function topicsOf(events: readonly AnyEventDefinition[]): TopicDefinition[] {
  const topics = new Map<string, TopicDefinition>();
  for (const { topic } of events) {
    const other = topics.get(topic.name);
    if (other !== undefined && (other.partitions !== topic.partitions || other.maxBytes !== topic.maxBytes)) {
      throw new TurnoutError('TURNOUT_DEFINITION_INVALID', `Topic ${topic.name} is defined in two ways.`, {
        details: {
          path: 'topic',
          topic: topic.name,
          partitions: [other.partitions, topic.partitions],
          maxBytes: [other.maxBytes, topic.maxBytes],
        },
      });
    }
    topics.set(topic.name, topic);
  }
  return [...topics.values()];
}

/** The decision behind {@link applyTopics}. */
export function planTopics(wanted: readonly TopicDescription[], existing: readonly TopicDescription[]): TopicChange[] {
  return wanted.map(({ name, partitions }) => {
    const actual = existing.find((each) => each.name === name)?.partitions;
    if (actual !== undefined && actual !== partitions) {
      throw new TurnoutError(
        'TURNOUT_PARTITIONS_MISMATCH',
        `Topic ${name} has ${actual} partitions and is defined with ${partitions}.`,
        {
          details: { topic: name, recorded: partitions, actual },
        },
      );
    }
    return { topic: name, partitions, change: actual === undefined ? 'created' : 'unchanged' };
  });
}
