import { inMemoryBroker } from '../../src/testing/index.ts';
import { sourceContract } from './source.ts';

const broker = inMemoryBroker();
const publisher = broker.publisher();

sourceContract('in-memory broker', () => ({
  source: () => broker.source(),
  createTopic: (name, partitions) => broker.topics().create([{ name, partitions }]),
  async write(place, messages) {
    await publisher.connect();
    await publisher.send([{ ...place, messages }]);
  },
  async deleteBelow({ topic, partition }, offset) {
    broker.deleteBelow(topic, partition, offset);
  },
}));
