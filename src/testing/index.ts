export { inMemoryBroker } from './in-memory-broker.ts';
export type { InMemoryBroker, InMemoryBrokerOptions } from './in-memory-broker.ts';
export { testHandler } from './test-handler.ts';
export type { HandlerRun, TestHandlerOptions } from './test-handler.ts';
