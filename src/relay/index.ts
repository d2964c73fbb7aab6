export { outboxKeeper } from './keeper.ts';
export type { OutboxKeeperOptions } from './keeper.ts';
export type { LastRecord, PartitionBatch, Publisher } from './publisher.ts';
export { createRelay } from './relay.ts';
export type { Relay, RelayCounts, RelayEvent, RelayOptions } from './relay.ts';
export type { TopicAdmin, TopicDescription } from './topic-admin.ts';
export { applyTopics } from './topics.ts';
export type { TopicChange } from './topics.ts';
