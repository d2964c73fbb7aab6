export type {
  Batch,
  Membership,
  PartitionBounds,
  Source,
  SourceMessage,
  Subscription,
  TopicPartition,
} from './source.ts';
