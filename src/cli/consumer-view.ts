import type { ConsumerDefinition } from '../consumer/index.ts';
import type { Queryable } from '../database/index.ts';
import { consumerEvidence } from '../switchover/index.ts';
import type { ConsumerView } from '../switchover/index.ts';
import type { TurnoutConfig } from '../config.ts';

/** A consumer's database, if the configuration has it: that of its definition, or one it names for looking. */
export function consumerDatabase(config: TurnoutConfig, consumer: string): Queryable | undefined {
  return consumersOf(config).find(({ name }) => name === consumer)?.database ?? config.consumerDatabases?.[consumer];
}

/** All consumers that a configuration defines; a bridge is one. */
export function consumersOf({ consumers = [], bridges = [] }: TurnoutConfig): readonly ConsumerDefinition[] {
  return [...consumers, ...bridges];
}

/** Where a configuration can look at a consumer: its database, or a function that fetches what the consumer serves. */
export function consumerView(config: TurnoutConfig, consumer: string): ConsumerView {
  const database = consumerDatabase(config, consumer);
  return {
    broker: config.broker?.source(),
    evidence:
      database === undefined
        ? config.evidence?.[consumer]
        : (question) => consumerEvidence(database, consumer, question),
  };
}
