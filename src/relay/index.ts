export type { LastRecord, PartitionBatch, Publisher } from './publisher.ts';
export type { TopicAdmin, TopicDescription } from './topic-admin.ts';
