export { afterAnswer } from './after-answer.ts';
export type { Answered, Callee, Next } from './after-answer.ts';
export { defineBridge, isBridge } from './bridge.ts';
export type { BridgeDefinition, BridgeOptions } from './bridge.ts';
export type { EndpointKind } from './bridged-answer.ts';
export type { Rate } from './rate-limit.ts';
export { callHeaders, formatTurn, hasCallHeaders, parseTurn, readCallHeaders } from './call-headers.ts';
export type { AnsweredOutcome, CalledEffect } from './call-headers.ts';
export { callQueue } from './call-queue.ts';
export type { CallQueue, CallQueueOptions } from './call-queue.ts';
export { callFor, defineSwitchover } from './define-switchover.ts';
export type { MaybeReply, RpcAnswer, RpcCall, SwitchoverDefinition } from './define-switchover.ts';
export { defaultCallRetry } from './deliver-call.ts';
export type { CallRetryPolicy, Delivered, DeliveryOptions, OwedCall } from './deliver-call.ts';
export { availableStages, isPromotion, isStage, rampBucket, routeFor, stages, transitions } from './stage.ts';
export type { Routing, Stage } from './stage.ts';
export {
  createdXidFinished,
  recordSince,
  registerSwitchover,
  setStage,
  switchoverHistory,
  switchoverStart,
  switchoverStatus,
} from './stage-store.ts';
export type { Since, StageChange, SwitchoverStatus } from './stage-store.ts';
export { definitiveCodes, grpcCodeOfStatus, statusOfGrpcCode } from './grpc-codes.ts';
export { rpcSweeper } from './sweeper.ts';
export type { RpcSweeper, RpcSweeperCounters, RpcSweeperOptions } from './sweeper.ts';
export { createEndpoint } from './endpoint.ts';
export type { Endpoint, EndpointOptions, GateAnswer, GateRequest, HandlerAnswer } from './endpoint.ts';
export { replyConsumer } from './replies/reply-consumer.ts';
export { acceptedAnswer, answerReplyStatus, statusOf } from './replies/reply-status.ts';
export type { PendingReply, PlainAnswer, ReplyStatus, ReplyStatusOptions } from './replies/reply-status.ts';
export { awaitReplies, readReplies } from './replies/reply-store.ts';
export type { KeptReply, KnownReply } from './replies/reply-store.ts';
export { replyTo } from './replies/reply-to.ts';
export { replyWaiter } from './replies/reply-waiter.ts';
export type { ReplyWaiter } from './replies/reply-waiter.ts';
export { bodyOf, throughGate } from './http/index.ts';
export type { HttpExchange } from './http/index.ts';
