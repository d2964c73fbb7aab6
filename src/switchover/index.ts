export { afterAnswer } from './calls/after-answer.ts';
export type { Answered, Callee, Next } from './calls/after-answer.ts';
export { createCapture } from './endpoint/capture.ts';
export type { CapturedAnswer, CapturedRequest, CaptureOptions, CapturingTurnout } from './endpoint/capture.ts';
export { defineBridge } from './bridge/bridge.ts';
export type { BridgeDefinition, BridgeOptions } from './bridge/bridge.ts';
export type { EndpointKind } from './calls/bridged-answer.ts';
export type { Rate } from './bridge/rate-limit.ts';
export { callHeaders, formatTurn, hasCallHeaders, parseTurn, readCallHeaders } from './calls/call-headers.ts';
export type { AnsweredOutcome, CalledEffect } from './calls/call-headers.ts';
export { headersForCallers } from './endpoint/caller-headers.ts';
export { callQueue } from './calls/call-queue.ts';
export type { CallQueue, CallQueueOptions } from './calls/call-queue.ts';
export { callFor, defineSwitchover } from './define-switchover.ts';
export type { MaybeReply, RpcAnswer, RpcCall, SwitchoverDefinition } from './define-switchover.ts';
export { defaultCallRetry } from './calls/deliver-call.ts';
export type { CallRetryPolicy, Delivered, DeliveryOptions, OwedCall } from './calls/deliver-call.ts';
export { isPromotion, isStage, rampBucket, routeFor, stageChange, stages, transitions } from './stage.ts';
export type { Routing, Stage, StageDecision, StageFacts, StageProblem, StageRequest, StageRow } from './stage.ts';
export { latestCheck, recordCheck } from './stages/check-store.ts';
export type { RecordedCheck } from './stages/check-store.ts';
export { redrive, setStage, stepBack } from './stages/stage-store.ts';
export type { ProblemDetails } from './stages/stage-store.ts';
export {
  createdXidFinished,
  openTransactionsOver,
  recordSince,
  registerSwitchover,
  switchoverNames,
  switchoverStart,
} from './stages/start-store.ts';
export type { Since, SwitchoverStart } from './stages/start-store.ts';
export { switchoverHistory, switchoverStatus } from './stages/status-store.ts';
export type { StageChange, SwitchoverStatus } from './stages/status-store.ts';
export { definitiveCodes, grpcCodeOfStatus, isDefinitiveCode, statusOfGrpcCode } from './endpoint/grpc-codes.ts';
export { endpointsOnce, requireBridged, requireEndpoints } from './stages/require-endpoints.ts';
export { rpcSweeper } from './calls/sweeper.ts';
export type { RpcSweeper, RpcSweeperCounters, RpcSweeperOptions } from './calls/sweeper.ts';
export { webhook } from './checks/alerts.ts';
export type { Alert, OnAlert, WebhookOptions } from './checks/alerts.ts';
export { checkSwitchover } from './checks/check-switchover.ts';
export type { CheckOptions, SwitchoverCheck } from './checks/check-switchover.ts';
export { judge } from './checks/checks.ts';
export type { CheckFacts, Judgement } from './checks/checks.ts';
export type { CheckRules } from './checks/check-rules.ts';
export { duration } from './checks/findings.ts';
export type { CheckVerdict, Finding } from './checks/findings.ts';
export { consumerEvidence } from './checks/evidence.ts';
export type {
  ConsumerEvidence,
  EndpointSeen,
  EvidenceQuestion,
  EvidenceScope,
  HeldEvidence,
  UnknownCaller,
} from './checks/evidence.ts';
export { explainEvent, explanationText } from './checks/explain.ts';
export type { AtConsumer, ExplainedEvent, ExplainedRoute, Explanation } from './checks/explain.ts';
export { askForEvidence, scopeOf, switchoverState, switchoverStates } from './checks/facts.ts';
export { unreadMs } from './checks/unread.ts';
export type { ConsumerView, SwitchoverState } from './checks/facts.ts';
export { breached, guardrailWindowMs } from './checks/guardrails.ts';
export type { Breach, GuardrailFacts, GuardrailRules, GuardrailVerdict } from './checks/guardrails.ts';
export { guardrails } from './checks/watch-switchovers.ts';
export type { GuardrailOptions, Guardrails } from './checks/watch-switchovers.ts';
export { createEndpoint } from './endpoint/endpoint.ts';
export { compareWith, describeEffect, shadowReport, unwatchTable, waiveMismatch, watchTable } from './shadow/index.ts';
export type { CompareOptions, Comparison, ShadowGroup, ShadowReport, ShadowReportOptions } from './shadow/index.ts';
export type { Endpoint, EndpointOptions, GateAnswer, GateRequest, HandlerAnswer } from './endpoint/endpoint.ts';
export { replyConsumer } from './replies/reply-consumer.ts';
export { acceptedAnswer, answerReplyStatus, statusOf } from './replies/reply-status.ts';
export type { PendingReply, PlainAnswer, ReplyStatus, ReplyStatusOptions } from './replies/reply-status.ts';
export { awaitReplies, readReplies, saysNothing } from './replies/reply-store.ts';
export type { KeptReply, KnownReply } from './replies/reply-store.ts';
export { replyTo } from './replies/reply-to.ts';
export { replyWaiter } from './replies/reply-waiter.ts';
export type { ReplyWaiter } from './replies/reply-waiter.ts';
export { bounded, brokenOff, inTime, requestTooLarge, tooLarge } from './calls/given-up.ts';
export { refusalText } from './endpoint/gate-answer.ts';
export { comparable, mute, requestBody, throughGate } from './endpoint/http/index.ts';
export type { HttpExchange } from './endpoint/http/index.ts';
