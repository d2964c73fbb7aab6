export { afterAnswer } from './after-answer.ts';
export type { Answered, Callee, Next } from './after-answer.ts';
export type { EndpointKind } from './bridged-answer.ts';
export { callHeaders, formatTurn, hasCallHeaders, parseTurn, readCallHeaders } from './call-headers.ts';
export type { AnsweredOutcome, CalledEffect } from './call-headers.ts';
export { callQueue } from './call-queue.ts';
export type { CallQueue, CallQueueOptions } from './call-queue.ts';
export { callFor, defineSwitchover } from './define-switchover.ts';
export type { RpcAnswer, RpcCall, SwitchoverDefinition } from './define-switchover.ts';
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
export { rpcSweeper } from './sweeper.ts';
export type { RpcSweeper, RpcSweeperCounters, RpcSweeperOptions } from './sweeper.ts';
export { createEndpoint } from './endpoint.ts';
export type { Endpoint, EndpointOptions, GateAnswer, GateRequest, HandlerAnswer } from './endpoint.ts';
