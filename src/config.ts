import type { ConsumerDefinition, Source } from './consumer/index.ts';
import type { Database } from './database/index.ts';
import type { AnyEventDefinition } from './event/index.ts';
import type { Publisher, TopicAdmin } from './relay/index.ts';
import type { SwitchoverDefinition } from './switchover/index.ts';

/** How to reach a broker. `kafkaJs(kafka)` of `turnout/kafkajs` and `inMemoryBroker()` of `turnout/testing` are ones. */
export interface Broker {
  publisher(): Publisher;
  source(): Source;
  topics(): TopicAdmin;
}

/**
 * What `turnout.config.ts` says of one service. A service that publishes names `source`, `database` and `events`; one
 * that consumes names `consumers`; most name a `broker`.
 */
export interface TurnoutConfig {
  /** The source whose events this service publishes. */
  readonly source?: string;
  /** The database with the outbox. */
  readonly database?: Database;
  readonly broker?: Broker;
  /** Event types that this service publishes. */
  readonly events?: readonly AnyEventDefinition[];
  /** Consumers of these events that are on their way from calls to events. */
  readonly switchovers?: readonly SwitchoverDefinition[];
  /** Consumers that this service runs; each has its own database. */
  readonly consumers?: readonly ConsumerDefinition[];
  /** Called when a command is done: ends pools and clients, so that the process can exit at once. */
  readonly close?: () => Promise<void>;
}

/**
 * Types a configuration; `export default` it from `turnout.config.ts`.
 *
 * @example
 * export default defineConfig({
 *   source: 'orders',
 *   database: pgDatabase(pool),
 *   broker: kafkaJs(new Kafka({ brokers: ['localhost:9092'] })),
 *   events: [OrderPlaced],
 *   switchovers: [confirmation],
 *   close: () => pool.end(),
 * });
 */
export function defineConfig(config: TurnoutConfig): TurnoutConfig {
  return config;
}
