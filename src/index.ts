// What most programs need. Adapters and tests for users have entries of their own (`turnout/pg`, `turnout/testing` …).

// Events
export { defineEvent, defineTopic, on } from './event/index.ts';
export type {
  AnyEventDefinition,
  EventData,
  EventDefinition,
  EventInput,
  EventKind,
  Ordering,
  Reaction,
  Route,
  Stamp,
  TopicDefinition,
  Turn,
  TurnoutEvent,
} from './event/index.ts';

// Publishing
export { createTurnout, occurrence } from './turnout.ts';
export type {
  EventOptions,
  EventReply,
  Occurrence,
  Published,
  Reply,
  RpcReply,
  Turnout,
  TurnoutOptions,
} from './turnout.ts';
export { mayBeRepeated, registerEvents } from './outbox/index.ts';
export type { PublishedStamp } from './outbox/index.ts';

// Switchovers
export {
  createCapture,
  createEndpoint,
  defineBridge,
  defineSwitchover,
  latestCheck,
  recordCheck,
  recordSince,
  redrive,
  registerSwitchover,
  rpcSweeper,
  setStage,
  stepBack,
  switchoverHistory,
  switchoverStatus,
} from './switchover/index.ts';
export type {
  BridgeDefinition,
  BridgeOptions,
  CallRetryPolicy,
  CapturedAnswer,
  CapturedRequest,
  CaptureOptions,
  CapturingTurnout,
  Endpoint,
  EndpointKind,
  EndpointOptions,
  Rate,
  RpcAnswer,
  RpcCall,
  RpcSweeper,
  RpcSweeperCounters,
  RpcSweeperOptions,
  Stage,
  StageChange,
  SwitchoverDefinition,
  SwitchoverStatus,
} from './switchover/index.ts';

// Replies
export { acceptedAnswer, answerReplyStatus, replyConsumer, replyTo } from './switchover/index.ts';
export type {
  KeptReply,
  MaybeReply,
  PendingReply,
  PlainAnswer,
  ReplyStatus,
  ReplyStatusOptions,
} from './switchover/index.ts';

// Checks and guardrails
export { checkSwitchover, consumerEvidence, guardrails, judge, webhook } from './switchover/index.ts';
export type {
  Alert,
  Breach,
  CheckFacts,
  CheckOptions,
  CheckRules,
  CheckVerdict,
  ConsumerEvidence,
  ConsumerView,
  EvidenceQuestion,
  Finding,
  GuardrailOptions,
  GuardrailRules,
  Guardrails,
  Judgement,
  OnAlert,
  SwitchoverCheck,
  UnknownCaller,
  WebhookOptions,
} from './switchover/index.ts';

// Stage shadow
export {
  compareWith,
  describeEffect,
  shadowReport,
  unwatchTable,
  waiveMismatch,
  watchTable,
} from './switchover/index.ts';
export type { CompareOptions, Comparison, ShadowGroup, ShadowReport, ShadowReportOptions } from './switchover/index.ts';

// Databases
export { migrate, migrationScript, requireMigrations } from './database/index.ts';
export type {
  AppliedMigration,
  Database,
  MigrationSet,
  Queryable,
  QueryResultLike,
  Session,
} from './database/index.ts';

// Relay
export { applyTopics, createRelay, outboxKeeper } from './relay/index.ts';
export type {
  LastRecord,
  OutboxKeeperOptions,
  PartitionBatch,
  Publisher,
  Relay,
  RelayCounts,
  RelayEvent,
  RelayOptions,
  TopicAdmin,
  TopicChange,
  TopicDescription,
} from './relay/index.ts';

// Consumers
export { defineConsumer, planned, drainHeld, endedAs, runConsumer } from './consumer/index.ts';
export type {
  Batch,
  ConsumerDefinition,
  ConsumerOptions,
  DetachedContext,
  DetachedOptions,
  EndedEffect,
  HandlerContext,
  Membership,
  PartitionBounds,
  RunConsumerOptions,
  Source,
  SourceMessage,
  Subscription,
  TopicPartition,
  TransactionOptions,
} from './consumer/index.ts';

// Proxies
export { defineProxy, proxyRoute, runProxy } from './proxy/index.ts';
export type {
  ProxiedRequest,
  Proxy,
  ProxyAnswer,
  ProxyCounters,
  ProxyDefinition,
  ProxyOptions,
  ProxyRoute,
  ProxyRouteOptions,
  ProxyTurnout,
  RecordedCall,
} from './proxy/index.ts';

// Configuration of the command line
export { defineConfig } from './config.ts';
export type { Broker, TurnoutConfig } from './config.ts';

// Services, errors
export { jsonLogger, service, silentLogger, together } from './lifecycle/index.ts';
export type { Logger, RetryPolicy, Service } from './lifecycle/index.ts';
export { isTurnoutError, TurnoutError } from './errors/index.ts';
export type { ErrorCode, ErrorDetails } from './errors/index.ts';
