import type { ConsumerDefinition, Source } from './consumer/index.ts';
import type { Database, Queryable } from './database/index.ts';
import type { AnyEventDefinition } from './event/index.ts';
import type { ProxyDefinition } from './proxy/index.ts';
import type { Publisher, TopicAdmin } from './relay/index.ts';
import type {
  BridgeDefinition,
  ConsumerEvidence,
  EvidenceQuestion,
  OnAlert,
  SwitchoverDefinition,
} from './switchover/index.ts';

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
  /**
   * Databases of consumers that this configuration doesn't run, by the consumer's name: checks and guardrails look there. Rights of
   * turnout_reader are enough. For a consumer in `consumers`, its own database is used.
   */
  readonly consumerDatabases?: Readonly<Record<string, Queryable>>;
  /** Where there is no access to a consumer's database: a function that fetches what the consumer serves by `consumerEvidence`. */
  readonly evidence?: Readonly<Record<string, (question: EvidenceQuestion) => Promise<ConsumerEvidence>>>;
  /** Told of guardrails that stepped back, were breached, or can't see a consumer: `webhook(url)`, or any function. */
  readonly onAlert?: OnAlert;
  /** Bridges that this service runs, to endpoints that nobody can change; each has its own database. */
  readonly bridges?: readonly BridgeDefinition[];
  /** Proxies that this service runs, in front of endpoints whose callers nobody can change. */
  readonly proxies?: readonly ProxyDefinition[];
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
