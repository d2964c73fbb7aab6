import { TurnoutError } from '../errors/index.ts';

/**
 * Named places in the shipped code where a test can break a guarantee on purpose and see that it is noticed.
 * All are off unless named in TURNOUT_FAILPOINTS (comma-separated) or switched on by a test in the same process.
 */
export const failpoints = {
  'relay.read-above-last-id': 'reads "seq greater than the last" instead of what became visible between two snapshots',
  'relay.persist-tick-after-publish': 'persists a tick only after its events were published',
  'relay.unchained-sends': 'goes on with later pages after an earlier one failed',
  'relay.accept-sequence-cache': 'starts although the sequence of the outbox caches numbers',
  'calls.trust-any-answer': 'takes every answer for the end of a call, whoever gave it',
  'calls.no-sweeper': 'makes no call again that was left behind',
  'consumer.position-before-effect': 'commits the position in a transaction of its own, a moment before the effect',
} as const;

export type Failpoint = keyof typeof failpoints;

const active = new Set<Failpoint>();
for (const name of (process.env['TURNOUT_FAILPOINTS'] ?? '').split(',').filter(Boolean)) enableFailpoint(name);

/** Switches a failpoint on in this process; gives the function that switches it off. Throws TURNOUT_FAILPOINT_UNKNOWN. */
export function enableFailpoint(name: string): () => void {
  if (!Object.hasOwn(failpoints, name)) {
    throw new TurnoutError('TURNOUT_FAILPOINT_UNKNOWN', `There is no failpoint ${name}.`, { details: { name } });
  }
  const known = name as Failpoint;
  active.add(known);
  return () => active.delete(known);
}

/** Whether a failpoint is on. */
export function failpoint(name: Failpoint): boolean {
  return active.has(name);
}
