import type { Kafka } from 'kafkajs';
import type { Source } from '../../src/consumer/index.ts';
import type { Publisher, TopicAdmin } from '../../src/relay/index.ts';
import { kafkaJsPublisher } from './publisher.ts';
import type { KafkaJsPublisherOptions } from './publisher.ts';
import { kafkaJsSource } from './source.ts';
import type { KafkaJsSourceOptions } from './source.ts';
import { kafkaJsTopics } from './topic-admin.ts';

export { kafkaJsPublisher } from './publisher.ts';
export type { KafkaJsPublisherOptions, KafkaPublisherLike } from './publisher.ts';
export { kafkaJsSource } from './source.ts';
export type { KafkaJsSourceOptions, KafkaSourceLike } from './source.ts';
export { kafkaJsTopics } from './topic-admin.ts';

/**
 * Apache Kafka through kafkajs, as `broker` of a configuration.
 *
 * @example
 * export default defineConfig({ broker: kafkaJs(new Kafka({ brokers: ['localhost:9092'] })) });
 */
export function kafkaJs(
  kafka: Pick<Kafka, 'admin' | 'consumer' | 'producer'>,
  options: { publisher?: KafkaJsPublisherOptions; source?: KafkaJsSourceOptions } = {},
): { publisher(): Publisher; source(): Source; topics(): TopicAdmin } {
  return {
    publisher: () => kafkaJsPublisher(kafka, options.publisher),
    source: () => kafkaJsSource(kafka, options.source),
    topics: () => kafkaJsTopics(kafka),
  };
}
