// For handlers that can't take part in a transaction (they call another service, or use a database of their own):
// an intent is committed before the effect and its outcome after. A crash between the two leaves the intent, and the
// effect is tried again: at least once, and `attempt` says that it is uncertain.
import type { Queryable } from '../database/index.ts';
import { defaultLeaseMs, defaultRetentionMs, enter, record, settled } from './apply.ts';
import type { Arrival, Effect, Verdict } from './apply.ts';

export interface IntendOptions {
  readonly retentionMs?: number;
  /**
   * How long an intent without an outcome counts as running, in milliseconds; default 60,000. With 0 the caller vouches
   * that whoever wrote an earlier intent runs no more.
   */
  readonly leaseMs?: number;
}

/**
 * Writes the intent to have an effect. With `go` the caller commits, runs the handler, and calls {@link settle};
 * `uncertain` means that an earlier attempt may have had its effect: how it ended is not known. Other verdicts are those
 * of `apply`.
 */
export async function intend(
  tx: Queryable,
  arrival: Arrival,
  options: IntendOptions = {},
): Promise<Verdict | { readonly kind: 'go'; readonly attempt: number; readonly uncertain: boolean }> {
  const entry = await enter(tx, arrival, {
    retentionMs: options.retentionMs ?? defaultRetentionMs,
    leaseMs: options.leaseMs ?? defaultLeaseMs,
  });
  if (entry.decision.kind !== 'apply') return settled(tx, arrival, entry);
  const attempt = entry.attempts + 1;
  await record(tx, arrival, { outcome: 'running', attempts: attempt });
  return { kind: 'go', attempt, uncertain: attempt > 1 && !entry.failed };
}

/** Writes the outcome of an effect that {@link intend} let go. If it has one by now, that one stands. */
export async function settle(tx: Queryable, arrival: Arrival, effect: Effect, attempt: number): Promise<Verdict> {
  // leaseMs -1: whatever its age, the intent counts as ours.
  const entry = await enter(tx, { ...arrival, path: 'event' }, { retentionMs: defaultRetentionMs, leaseMs: -1 });
  if (entry.decision.kind !== 'apply') return settled(tx, arrival, entry);
  await record(tx, arrival, { ...effect, attempts: attempt });
  return { kind: 'done', outcome: effect.outcome, answer: effect.answer ?? null, repeated: false };
}

/** Notes that an effect which {@link intend} let go has failed, so that whoever tries it next needs not wait for the lease. */
export async function noteFailed(tx: Queryable, arrival: Arrival, attempt: number): Promise<void> {
  const entry = await enter(tx, { ...arrival, path: 'event' }, { retentionMs: defaultRetentionMs, leaseMs: -1 });
  // Somebody else may have begun meanwhile.
  if (entry.decision.kind !== 'apply' || entry.attempts !== attempt) return;
  await record(tx, arrival, { outcome: 'running', reason: 'failed', attempts: attempt });
}
