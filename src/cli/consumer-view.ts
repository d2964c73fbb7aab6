import { consumerEvidence } from '../switchover/index.ts';
import type { ConsumerView } from '../switchover/index.ts';
import type { TurnoutConfig } from '../config.ts';

/** Where a configuration can look at a consumer: the database of its definition, one it names for that, or a function that fetches. */
export function consumerView(config: TurnoutConfig, consumer: string): ConsumerView {
  const database =
    config.consumers?.find(({ name }) => name === consumer)?.database ?? config.consumerDatabases?.[consumer];
  return {
    broker: config.broker?.source(),
    evidence:
      database === undefined
        ? config.evidence?.[consumer]
        : (question) => consumerEvidence(database, consumer, question),
  };
}
