// The consumer's database: what `apply`, `hold` and their SQL functions do around the shipped decisions, each in one transaction
// under the lock of the key, so that one of them is one step.
import { afterVerdict } from '../../src/consumer/decide.ts';
import { verdictOf } from '../../src/inbox/apply.ts';
import { decide } from '../../src/inbox/index.ts';
import type { Decision, Outcome, Verdict } from '../../src/inbox/index.ts';
import { nextOf } from '../../src/inbox/next-held.ts';
import type { HeldOfKey } from '../../src/inbox/next-held.ts';
import { remembered } from './run.ts';
import type { Run } from './run.ts';
import type { State } from './search.ts';
import {
  effects,
  gateOf,
  givenOf,
  heldAs,
  inMemory,
  keyOf,
  knownOutcome,
  nameOf,
  numberOf,
  tooOld,
  withHalt,
  withNumber,
  withOutcome,
} from './world.ts';
import type { Path } from './world.ts';

export interface Applied {
  readonly verdict: Verdict;
  /** What it has broken. */
  readonly broken: string | undefined;
}

const decisions = remembered<Decision>();

/** The shipped decision about an arrival, as the world is. */
function decided(run: Run, world: State, event: number, path: Path, isNew: boolean): Decision {
  const { bounds, layout, breakage } = run;
  const side = breakage === 'no-shared-inbox' ? path : 'event';
  const inbox = world[layout.inbox + event]!;
  const gate = world[layout.gate + keyOf(bounds, event)]!;
  const number = numberOf(world[layout.stamp + event]!);
  const isOld = (inbox & tooOld) !== 0 && !isNew;
  const code =
    (((((inbox & 27) * 256 + gate) * 4 + number) * 2 + (isOld ? 1 : 0)) * 2 + (path === 'rpc' ? 1 : 0)) * 2 +
    (side === 'rpc' ? 1 : 0);
  return decisions(code, () => {
    const outcome = knownOutcome(inbox, side);
    return decide({
      eventId: 'e',
      path,
      requestHash: path === 'rpc' ? 'hash' : undefined,
      turn: number === 0 ? undefined : { generation: 1, number },
      tooOld: isOld,
      known: outcome === undefined ? undefined : { outcome, eventId: 'e', requestHash: undefined, leaseOver: false },
      gate: number === 0 ? undefined : gateOf(gate, side),
    });
  });
}

/** `isNew`: what the sequence proves to be no repeat, and what was new when it was held, is not too old. */
export function applyArrival(
  run: Run,
  next: State,
  event: number,
  { path, outcome, isNew }: { readonly path: Path; readonly outcome: Outcome; readonly isNew: boolean },
): Applied {
  const { bounds, layout } = run;
  const decision = decided(run, next, event, path, isNew);
  if (decision.kind === 'apply') {
    const broken = record(run, next, event, path, outcome);
    return { verdict: { kind: 'done', outcome, answer: null, repeated: false }, broken };
  }
  const turn = { generation: 1, number: numberOf(next[layout.stamp + event]!) };
  const verdict = verdictOf({ turn, effectKey: nameOf(bounds, event) }, decision, null);
  if (verdict.kind !== 'halted') return { verdict, broken: undefined };
  next[layout.gate + keyOf(bounds, event)] = withHalt(next[layout.gate + keyOf(bounds, event)]!);
  return { verdict, broken: `The key stops at ${nameOf(bounds, event)}: it should be known, and is not.` };
}

/** The handler has run: outcome, gate and what is held, as in turnout.record_outcome. */
export function record(
  run: Run,
  next: State,
  event: number,
  path: Path,
  outcome: Outcome,
  how: 'handler' | 'operator' = 'handler',
): string | undefined {
  const { bounds, layout, breakage } = run;
  const key = keyOf(bounds, event);
  const side = breakage === 'no-shared-inbox' ? path : 'event';
  const number = numberOf(next[layout.stamp + event]!);
  next[layout.inbox + event] = withOutcome(next[layout.inbox + event]!, side, outcome);
  if (number !== 0 && !(outcome === 'rejected' && breakage === 'rejected-keeps-number')) {
    const last = gateOf(next[layout.gate + key]!, side)?.lastNumber ?? 0;
    if (number !== last + 1) return `The gate refuses number ${number} of ${nameOf(bounds, event)} after ${last}.`;
    next[layout.gate + key] = withNumber(next[layout.gate + key]!, side, number);
    if (!bounds.sweepsHeld) next[layout.draining + key] = 1;
  }
  next[layout.held + event] = heldAs.none;
  return how === 'operator' ? noteEffect(run, next, event, 'skipped') : noteEffect(run, next, event, outcome);
}

/** What really happened, whatever the databases say of it. */
function noteEffect({ bounds, layout }: Run, next: State, event: number, outcome: Outcome): string | undefined {
  const name = nameOf(bounds, event);
  if (next[layout.effect + event] !== effects.none) return `Doubled: ${name} has its effect a second time.`;
  next[layout.effect + event] =
    outcome === 'applied' ? effects.applied : outcome === 'rejected' ? effects.rejected : effects.skipped;
  if (bounds.order !== 'key' || givenOf(next[layout.stamp + event]!) === 'undeclared') return undefined;
  const last = (keyOf(bounds, event) + 1) * bounds.events;
  for (let later = event + 1; later < last; later++) {
    if (next[layout.effect + later] !== effects.none && givenOf(next[layout.stamp + later]!) !== 'undeclared')
      return `Out of order: ${name} has its effect after ${nameOf(bounds, later)}.`;
  }
  return undefined;
}

/** As turnout.hold_event: not what has its outcome by now. */
export function holdEvent(run: Run, next: State, event: number, reason: 'early' | 'behind' | 'parked'): void {
  const { layout, breakage } = run;
  if (breakage === 'no-lock-on-hold' && reason === 'early') {
    next[layout.held + event] = heldAs.early;
    return;
  }
  const isKnown = knownOutcome(next[layout.inbox + event]!, 'event') !== undefined;
  if (isKnown) next[layout.held + event] = heldAs.none;
  else next[layout.held + event] = heldAs[reason] | (breakage === 'early-in-memory' ? inMemory : 0);
}

export function heldReason(held: number): HeldOfKey['reason'] | undefined {
  return held === 0 ? undefined : (['early', 'behind', 'parked'] as const)[(held & 3) - 1];
}

/** The held events of a key, as the shipped decisions see them. */
export function heldOfKey({ bounds, layout }: Run, world: State, key: number): HeldOfKey[] {
  const held: HeldOfKey[] = [];
  for (let index = 0; index < bounds.events; index++) {
    const event = key * bounds.events + index;
    const reason = heldReason(world[layout.held + event]!);
    const number = numberOf(world[layout.stamp + event]!);
    const turn = number === 0 ? undefined : { generation: 1, number };
    if (reason !== undefined) held.push({ id: index, effectKey: nameOf(bounds, event), reason, turn });
  }
  return held;
}

/** The held event of a key that may go on, by the shipped decision. */
export function nextHeldOf(run: Run, world: State, key: number): number | undefined {
  const held = heldOfKey(run, world, key);
  if (held.length === 0) return undefined;
  const next = nextOf(held, gateOf(world[run.layout.gate + key]!, 'event'));
  return next === undefined ? undefined : key * run.bounds.events + next.id;
}

/** Lets a held event go on: applied, or known by now and let go. */
export function applyHeld(run: Run, next: State, event: number): string | undefined {
  const { verdict, broken } = applyArrival(run, next, event, { path: 'event', outcome: 'applied', isNew: true });
  const after = afterVerdict(verdict, nameOf(run.bounds, event));
  if (after.kind === 'repeated') next[run.layout.held + event] = heldAs.none;
  else if (after.kind === 'hold') holdEvent(run, next, event, after.reason);
  return broken;
}
