export { inMemoryBroker } from './in-memory-broker.ts';
export type { InMemoryBroker, InMemoryBrokerOptions } from './in-memory-broker.ts';
