export { apply, defaultLeaseMs, defaultRetentionMs } from './apply.ts';
export type { ApplyOptions, Arrival, Effect, Verdict } from './apply.ts';
export { decide } from './decide.ts';
export type { Decision, Gate, KnownEffect, Outcome, Situation } from './decide.ts';
export { intend, noteFailed, settle } from './detached.ts';
export type { IntendOptions } from './detached.ts';
export { heldThatCanGoOn, hold, isInTheWay, nextHeld, noteHeldFailure, release } from './held.ts';
export type { Held, HeldMessage, HoldReason, HoldResult, KeyOfGate } from './held.ts';
export { ensureInboxPartition } from './partitions.ts';
