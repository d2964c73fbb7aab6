export { defineEvent, defineTopic, isName } from './define-event.ts';
export type {
  AnyEventDefinition,
  EventData,
  EventDefinition,
  EventInput,
  EventKind,
  Ordering,
  TopicDefinition,
} from './define-event.ts';
export { decodeEnvelope, encodeEnvelope, formatSequence, isReservedHeader } from './envelope.ts';
export type { Envelope, Message, Sequence } from './envelope.ts';
export { on } from './on.ts';
export type { Reaction, TurnoutEvent } from './on.ts';
export { murmur2, partitionOf } from './partition.ts';
export { effectKeyOf, formatRoutes, parseRoutes } from './routes.ts';
export type { Route, Stamp, Turn } from './routes.ts';
export { invalidEventData, validateEventData } from './validate.ts';
