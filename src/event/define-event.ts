import type { StandardSchemaV1 } from '@standard-schema/spec';
import { invalidDefinition } from '../errors/index.ts';

/** A Kafka topic as its events' definitions see it. */
export interface TopicDefinition {
  readonly name: string;
  /** Recorded when the topic is applied, and fixed from then on: a key keeps its partition. */
  readonly partitions: number;
  /** Largest payload in bytes of JSON. */
  readonly maxBytes: number;
}

/** `'key'`: events of one key are published in the order in which their transactions were serialised. `'none'`: no order, no lock. */
export type Ordering = 'key' | 'none';

/** What a payload carries: ids and a link to fetch the rest, or the whole state. */
export type EventKind = 'notification' | 'state-transfer';

/** A named, versioned fact. `Input` is what `publish` takes, `Data` what handlers are given. */
export interface EventDefinition<Name extends string = string, Input = unknown, Data = unknown> {
  readonly name: Name;
  readonly version: number;
  readonly topic: TopicDefinition;
  readonly order: Ordering;
  readonly aggregate: string;
  readonly kind: EventKind;
  readonly schema: StandardSchemaV1<Input, Data>;
  /** The key of an event: which order, customer, account it is about. Undefined: the event has none. */
  readonly key: ((data: Data) => string) | undefined;
}

/** Any event definition, whatever its types. */
// `never` in the key's parameter makes every definition assignable here, since a function is contravariant in it.
export type AnyEventDefinition = Omit<EventDefinition, 'key' | 'schema'> & {
  readonly schema: StandardSchemaV1;
  readonly key: ((data: never) => string) | undefined;
};

/** What `publish` takes for an event definition. */
export type EventInput<Definition> = Definition extends EventDefinition<string, infer Input> ? Input : never;
/** What handlers are given for an event definition. */
export type EventData<Definition> =
  Definition extends EventDefinition<string, never, infer Data> ? Data : EventOutput<Definition>;
type EventOutput<Definition> = Definition extends { readonly schema: StandardSchemaV1<infer _Input, infer Data> }
  ? Data
  : never;

const namePattern = /^[a-z0-9][a-z0-9._-]{0,99}$/;
const topicPattern = /^[a-zA-Z0-9._-]{1,249}$/;

/**
 * Defines a topic. `partitions` (default 6) can't change later without a command; `maxBytes` (default 900,000) is the
 * largest payload. Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * const orders = defineTopic({ name: 'orders', partitions: 12 });
 */
export function defineTopic(topic: { name: string; partitions?: number; maxBytes?: number }): TopicDefinition {
  const { name, partitions = 6, maxBytes = 900_000 } = topic;
  if (!topicPattern.test(name) || name === '.' || name === '..') {
    throw invalidDefinition('name', `${JSON.stringify(name)} can't be the name of a Kafka topic.`);
  }
  if (!Number.isInteger(partitions) || partitions < 1 || partitions > 10_000) {
    throw invalidDefinition('partitions', `Topic ${name} can't have ${partitions} partitions.`);
  }
  if (!Number.isInteger(maxBytes) || maxBytes < 1)
    throw invalidDefinition('maxBytes', `Topic ${name} can't have maxBytes ${maxBytes}.`);
  return Object.freeze({ name, partitions, maxBytes });
}

/**
 * Defines an event type, once, for its publisher and all its consumers. Types come from the schema, which is any
 * Standard Schema (zod, valibot, arktype). Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * const OrderPlaced = defineEvent({
 *   name: 'orders.order-placed',
 *   version: 1,
 *   topic: 'orders',
 *   schema: z.object({ orderId: z.string(), total: z.number() }),
 *   key: (order) => order.orderId,
 * });
 */
export function defineEvent<const Name extends string, Schema extends StandardSchemaV1>(definition: {
  /** Lower case, with dots and dashes: `orders.order-placed`. */
  name: Name;
  /** Counts up with changes that old consumers can't read. */
  version: number;
  schema: Schema;
  /** Required unless `order` is `'none'`. */
  key?: (data: StandardSchemaV1.InferOutput<Schema>) => string;
  topic: TopicDefinition | string;
  /** Default `'key'`. */
  order?: Ordering;
  /** Debezium's `aggregatetype`; default: the part of the name before its first dot. */
  aggregate?: string;
  /** Default `'state-transfer'`. */
  kind?: EventKind;
}): EventDefinition<Name, StandardSchemaV1.InferInput<Schema>, StandardSchemaV1.InferOutput<Schema>> {
  const { name, version, schema, key, order = 'key', kind = 'state-transfer' } = definition;
  if (!namePattern.test(name)) {
    throw invalidDefinition(
      'name',
      `${JSON.stringify(name)} is not an event name: lower case letters, digits, dots, dashes, underscores.`,
    );
  }
  if (!Number.isInteger(version) || version < 1)
    throw invalidDefinition('version', `Event ${name} has version ${version}; versions count from 1.`);
  if (typeof schema?.['~standard']?.validate !== 'function') {
    throw invalidDefinition('schema', `Event ${name} has no Standard Schema (zod ≥ 3.24, valibot ≥ 1, arktype ≥ 2).`);
  }
  if (order === 'key' && key === undefined)
    throw invalidDefinition('key', `Event ${name} is ordered by key and has none; add one, or order: 'none'.`);
  const topic = typeof definition.topic === 'string' ? defineTopic({ name: definition.topic }) : definition.topic;
  return Object.freeze({
    name,
    version,
    topic,
    order,
    kind,
    aggregate: definition.aggregate ?? name.split('.')[0] ?? name,
    schema,
    key,
  });
}

/** Whether `name` can name a source, consumer or switchover. */
export function isName(name: string): boolean {
  return namePattern.test(name);
}
