export { afterAnswer } from './after-answer.ts';
export type { Answered, Callee, Next } from './after-answer.ts';
export { createCapture } from './capture.ts';
export type { CapturedAnswer, CapturedRequest, CaptureOptions, CapturingTurnout } from './capture.ts';
export { defineBridge } from './bridge.ts';
export type { BridgeDefinition, BridgeOptions } from './bridge.ts';
export type { EndpointKind } from './bridged-answer.ts';
export type { Rate } from './rate-limit.ts';
export { callHeaders, formatTurn, hasCallHeaders, parseTurn, readCallHeaders } from './call-headers.ts';
export type { AnsweredOutcome, CalledEffect } from './call-headers.ts';
export { headersForCallers } from './caller-headers.ts';
export { callQueue } from './call-queue.ts';
export type { CallQueue, CallQueueOptions } from './call-queue.ts';
export { callFor, defineSwitchover } from './define-switchover.ts';
export type { MaybeReply, RpcAnswer, RpcCall, SwitchoverDefinition } from './define-switchover.ts';
export { defaultCallRetry } from './deliver-call.ts';
export type { CallRetryPolicy, Delivered, DeliveryOptions, OwedCall } from './deliver-call.ts';
export { isPromotion, isStage, rampBucket, routeFor, stageChange, stages, transitions } from './stage.ts';
export type { Routing, Stage, StageDecision, StageFacts, StageProblem, StageRequest, StageRow } from './stage.ts';
export { latestCheck, recordCheck } from './check-store.ts';
export type { RecordedCheck } from './check-store.ts';
export { redrive, setStage, stepBack } from './stage-store.ts';
export type { ProblemDetails } from './stage-store.ts';
export {
  createdXidFinished,
  openTransactionsOver,
  recordSince,
  registerSwitchover,
  switchoverNames,
  switchoverStart,
} from './start-store.ts';
export type { Since, SwitchoverStart } from './start-store.ts';
export { switchoverHistory, switchoverStatus } from './status-store.ts';
export type { StageChange, SwitchoverStatus } from './status-store.ts';
export { definitiveCodes, grpcCodeOfStatus, isDefinitiveCode, statusOfGrpcCode } from './grpc-codes.ts';
export { endpointsOnce, requireBridged, requireEndpoints } from './require-endpoints.ts';
export { rpcSweeper } from './sweeper.ts';
export type { RpcSweeper, RpcSweeperCounters, RpcSweeperOptions } from './sweeper.ts';
export { webhook } from './alerts.ts';
export type { Alert, OnAlert, WebhookOptions } from './alerts.ts';
export { checkSwitchover } from './check-switchover.ts';
export type { CheckOptions, SwitchoverCheck } from './check-switchover.ts';
export { judge } from './checks.ts';
export type { CheckFacts, Judgement } from './checks.ts';
export type { CheckRules } from './check-rules.ts';
export { duration } from './findings.ts';
export type { CheckVerdict, Finding } from './findings.ts';
export { consumerEvidence } from './evidence.ts';
export type {
  ConsumerEvidence,
  EndpointSeen,
  EvidenceQuestion,
  EvidenceScope,
  HeldEvidence,
  UnknownCaller,
} from './evidence.ts';
export { explainEvent, explanationText } from './explain.ts';
export type { AtConsumer, ExplainedEvent, ExplainedRoute, Explanation } from './explain.ts';
export { askForEvidence, scopeOf, switchoverState, switchoverStates } from './facts.ts';
export { unreadMs } from './unread.ts';
export type { ConsumerView, SwitchoverState } from './facts.ts';
export { breached, guardrailWindowMs } from './guardrails.ts';
export type { Breach, GuardrailFacts, GuardrailRules, GuardrailVerdict } from './guardrails.ts';
export { guardrails } from './watch-switchovers.ts';
export type { GuardrailOptions, Guardrails } from './watch-switchovers.ts';
export { createEndpoint } from './endpoint.ts';
export { compareWith, describeEffect, shadowReport, unwatchTable, waiveMismatch, watchTable } from './shadow/index.ts';
export type { CompareOptions, Comparison, ShadowGroup, ShadowReport, ShadowReportOptions } from './shadow/index.ts';
export type { Endpoint, EndpointOptions, GateAnswer, GateRequest, HandlerAnswer } from './endpoint.ts';
export { replyConsumer } from './replies/reply-consumer.ts';
export { acceptedAnswer, answerReplyStatus, statusOf } from './replies/reply-status.ts';
export type { PendingReply, PlainAnswer, ReplyStatus, ReplyStatusOptions } from './replies/reply-status.ts';
export { awaitReplies, readReplies, saysNothing } from './replies/reply-store.ts';
export type { KeptReply, KnownReply } from './replies/reply-store.ts';
export { replyTo } from './replies/reply-to.ts';
export { replyWaiter } from './replies/reply-waiter.ts';
export type { ReplyWaiter } from './replies/reply-waiter.ts';
export { bounded, brokenOff, inTime, requestTooLarge, tooLarge } from './given-up.ts';
export { refusalText } from './gate-answer.ts';
export { comparable, mute, requestBody, throughGate } from './http/index.ts';
export type { HttpExchange } from './http/index.ts';
