import type { Message, ProducerConfig } from 'kafkajs';

/**
 * Few retries: a send that goes on failing must fail, so that the relay can say so, and replay. Idempotent, so that a retry
 * inside kafkajs doesn't write twice; kafkajs warns of the two together, and means guarantees that Turnout doesn't take from it.
 */
export const producerSettings: ProducerConfig = {
  idempotent: true,
  allowAutoTopicCreation: false,
  retry: { retries: 4, initialRetryTime: 100, maxRetryTime: 2_000 },
  createPartitioner: () => (args: { message: Message }) => args.message.partition ?? 0,
};
