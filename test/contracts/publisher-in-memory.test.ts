import { inMemoryBroker } from '../../src/testing/index.ts';
import { publisherContract } from './publisher.ts';

const broker = inMemoryBroker({ maxMessageBytes: 10_000 });
const dead = inMemoryBroker();
dead.becomeUnreachable();

publisherContract('in-memory broker', () => ({
  publisher: () => broker.publisher(),
  createTopic: (name, partitions) => broker.topics().create([{ name, partitions }]),
  async read(topic) {
    return broker.messages(topic).map(({ partition, key, value, headers }) => ({ partition, key, value, headers }));
  },
  tooLargeBytes: 20_000,
  unreachable: () => dead.publisher(),
}));
