export { afterFailure, countSequence, planFor, startPositions } from './decide.ts';
export type {
  AfterFailure,
  Circumstances,
  FailureKind,
  Failures,
  Plan,
  SequenceFinding,
  SequenceState,
} from './decide.ts';
export { defineConsumer } from './define-consumer.ts';
export type {
  ConsumerDefinition,
  ConsumerMode,
  ConsumerOptions,
  DetachedContext,
  DetachedOptions,
  HandlerContext,
  TransactionOptions,
} from './define-consumer.ts';
export { endedAs } from './detached-effect.ts';
export type { EndedEffect } from './detached-effect.ts';
export { drainHeld } from './drain.ts';
export { isPlanned, planned } from './planned.ts';
export type { PlannedReaction } from './planned.ts';
export { handlerTable, toEvent } from './read-event.ts';
export type { HandlerTable } from './read-event.ts';
export { runConsumer } from './run-consumer.ts';
export type { RunConsumerOptions } from './run-consumer.ts';
export type {
  Batch,
  Membership,
  PartitionBounds,
  Source,
  SourceMessage,
  Subscription,
  TopicPartition,
} from './source.ts';
