// The consumer's process: it reads the log message by message, looks for held events, and forgets what is old.
import {
  afterFailure,
  afterVerdict,
  countSequence,
  onEntry,
  planFor,
  startPositions,
} from '../../src/consumer/decide.ts';
import type { Plan, SequenceFinding } from '../../src/consumer/decide.ts';
import { parseRoutes } from '../../src/event/index.ts';
import type { Stamp } from '../../src/event/index.ts';
import { isInTheWayOf } from '../../src/inbox/next-held.ts';
import { applyArrival, applyHeld, heldOfKey, heldReason, holdEvent, nextHeldOf, record } from './apply.ts';
import { routeNow } from './producer.ts';
import { remembered } from './run.ts';
import type { Run, Step } from './run.ts';
import type { State } from './search.ts';
import {
  effects,
  epochOf,
  flag,
  gateOf,
  givenOf,
  heldAs,
  inMemory,
  keyNames,
  keyOf,
  knownOutcome,
  nameOf,
  numberOf,
  tooOld,
} from './world.ts';

export function consumerSteps(run: Run, world: State, step: Step): void {
  const { bounds, layout } = run;
  start(run, world, step);
  for (let partition = 0; partition < bounds.partitions; partition++) {
    if (world[layout.inHand + partition] !== 0) finishInHand(run, world, step, partition);
    else if (world[layout.position + partition]! < world[layout.logLength + partition]!)
      read(run, world, step, partition);
    rewind(run, world, step, partition);
  }
  for (let key = 0; key < bounds.keys; key++) drain(run, world, step, key);
  parked(run, world, step);
  crash(run, world, step);
  age(run, world, step);
}

/** Where it starts, by the shipped decision: where its start was recorded, else now. */
function start({ bounds, layout }: Run, world: State, step: Step): void {
  const flags = world[layout.flags]!;
  if ((flags & flag.started) !== 0) return;
  const isRecorded = (flags & flag.sinceRecorded) !== 0;
  const partitions = Array.from({ length: bounds.partitions }, (_, partition) => partition);
  const starts = startPositions({
    from: 'now',
    bounds: partitions.map((partition) => ({
      partition,
      low: 0n,
      high: BigInt(world[layout.logLength + partition]!),
    })),
    known: new Set(),
    committed: new Map(
      isRecorded ? partitions.map((partition) => [partition, BigInt(world[layout.since + partition]!)]) : [],
    ),
  });
  step(
    'progress',
    () => `the consumer starts at ${[...starts.values()].join(', ')}`,
    (next) => {
      next[layout.flags] = flags | flag.started;
      for (const [partition, offset] of starts) {
        next[layout.position + partition] = Number(offset);
        next[layout.since + partition] = Number(offset);
      }
      return undefined;
    },
  );
}

/** A message as it lies in the log. */
interface Read {
  readonly event: number;
  readonly sequence: number;
}

/** The relay numbers events densely; a repeat carries the same number. */
function messageAt({ layout }: Run, world: State, partition: number, offset: number): Read {
  const log = layout.log + partition * layout.logMost;
  const event = world[log + offset]! - 1;
  let sequence = 0;
  for (let at = 0; at <= offset; at++) {
    let isFirst = true;
    for (let earlier = 0; earlier < at; earlier++) if (world[log + earlier] === world[log + at]) isFirst = false;
    if (isFirst) sequence++;
    if (world[log + at] === event + 1) break;
  }
  return { event, sequence };
}

const stampOf = remembered<Stamp | undefined>();
const findings = remembered<SequenceFinding>();
const plans = remembered<Plan>();

/** What the `turnout-routes` header says, read by the shipped code. */
function headerOf(stamp: number): Stamp | undefined {
  return stampOf(stamp, () => {
    const given = givenOf(stamp);
    if (given !== 'rpc' && given !== 'event') return undefined;
    const turn = numberOf(stamp) === 0 ? '' : `;generation=1;number=${numberOf(stamp)}`;
    return parseRoutes(`c=${given};epoch=${epochOf(stamp)}${turn}`)[0];
  });
}

const findingCodes = { off: 0, next: 1, hole: 2, repeat: 3, 'before-base': 4 } as const;

function look(run: Run, world: State, partition: number): Read & { readonly finding: SequenceFinding; plan: Plan } {
  const { bounds, layout, breakage } = run;
  const offset = world[layout.position + partition]!;
  const message = messageAt(run, world, partition, offset);
  const counted = world[layout.counted + partition]!;
  const base = world[layout.base + partition]!;
  const finding = findings((counted * 16 + base) * 16 + message.sequence, () =>
    countSequence(counted === 0 ? undefined : { generation: 1, base: BigInt(base), last: BigInt(counted) }, {
      generation: 1,
      number: BigInt(message.sequence),
    }),
  );
  const stamp = world[layout.stamp + message.event]!;
  const now = breakage === 'route-not-stamped' ? routeNow(run, world, keyOf(bounds, message.event)) : undefined;
  const since = world[layout.since + partition]!;
  const isAnyEvent = breakage === 'no-route-is-event';
  const code =
    (((((findingCodes[finding.kind] * 16 + offset) * 16 + since) * 256 + stamp) * 2 + (now === 'event' ? 1 : 0)) * 2 +
      (now === undefined ? 1 : 0)) *
      2 +
    (isAnyEvent ? 1 : 0);
  const plan = plans(code, () => {
    const given = headerOf(stamp);
    return planFor({
      offset: BigInt(offset),
      since: BigInt(since),
      finding,
      stamp: given === undefined || now === undefined ? given : { ...given, route: now },
      inSwitchover: !isAnyEvent,
      handler: 'present',
      refused: undefined,
    });
  });
  return { ...message, finding, plan };
}

/** One message, in one transaction: fence, position, effect. */
function read(run: Run, world: State, step: Step, partition: number): void {
  const { bounds, layout, breakage } = run;
  if ((world[layout.flags]! & flag.started) === 0) return;
  const { event, finding, plan } = look(run, world, partition);
  const name = nameOf(bounds, event);
  let told = '';
  const label = (): string => `the consumer reads ${name}: ${told}`;
  const isDropped =
    breakage === 'drops-old-epochs' && epochOf(world[layout.stamp + event]!) < world[layout.highestEpoch]!;
  if (plan.kind !== 'apply' || isDropped) {
    told = isDropped ? 'its epoch is old, it is dropped' : `only observed (${plan.kind === 'observe' ? plan.why : ''})`;
    step('progress', label, (next) => {
      advance(run, next, partition, finding);
      return undefined;
    });
    return;
  }
  if (breakage === 'offset-before-database') {
    told = 'its offset is committed to Kafka, and its transaction is still open';
    step('progress', label, (next) => {
      advance(run, next, partition, finding);
      next[layout.inHand + partition] = event + 1;
      return undefined;
    });
    return;
  }
  step('progress', label, (next) => {
    const result = carryOut(run, next, partition, event, { finding, plan });
    told = result.told;
    return result.broken;
  });
  if (bounds.failing?.includes(event) === true) fail(run, world, step, partition, event, finding);
}

interface Told {
  readonly told: string;
  readonly broken: string | undefined;
}

function carryOut(
  run: Run,
  next: State,
  partition: number,
  event: number,
  { finding, plan }: { readonly finding: SequenceFinding; readonly plan: Plan & { readonly kind: 'apply' } },
): Told {
  const { bounds, layout, breakage } = run;
  const entry = entryOf(run, next, event, plan.turn !== undefined);
  const inbox = next[layout.inbox + event]!;
  // As in the partition's worker: without a number, a sequence that was passed must be known, or be old.
  if (plan.sequence === 'passed' && plan.turn === undefined) {
    if (knownOutcome(inbox, 'event') === undefined && next[layout.held + event] === heldAs.none) {
      if ((inbox & tooOld) === 0)
        return { told: 'a repeat that nobody knows', broken: 'The consumer halts: a repeat that nobody knows.' };
      advance(run, next, partition, finding);
      return { told: 'an old repeat, it is dropped', broken: undefined };
    }
  }
  if (entry === 'apply') {
    const isNew = plan.sequence === 'new' && !plan.stamped;
    if (breakage === 'drops-old-epochs') next[layout.highestEpoch] = epochOf(next[layout.stamp + event]!);
    const { verdict, broken } = applyArrival(run, next, event, { path: 'event', outcome: 'applied', isNew });
    const after = afterVerdict(verdict, nameOf(bounds, event));
    if (after.kind === 'hold' && after.reason === 'early' && breakage === 'no-lock-on-hold') {
      next[layout.inHand + partition] = event + 1;
      return { told: 'its turn has not come; it is about to be held', broken };
    }
    advance(run, next, partition, finding);
    if (after.kind === 'hold') holdEvent(run, next, event, after.reason);
    return { told: after.kind === 'hold' ? `held, ${after.reason}` : after.kind, broken };
  }
  advance(run, next, partition, finding);
  if (entry === 'behind') holdEvent(run, next, event, 'behind');
  return { told: entry === 'behind' ? 'held, behind another' : 'it is held already', broken: undefined };
}

function entryOf(run: Run, world: State, event: number, hasNumber: boolean): ReturnType<typeof onEntry> {
  const { bounds, layout } = run;
  const key = keyOf(bounds, event);
  const gate = gateOf(world[layout.gate + key]!, 'event');
  return onEntry({
    blocked: heldOfKey(run, world, key).some((held) => isInTheWayOf(held, gate, hasNumber)),
    held: heldReason(world[layout.held + event]!),
    ordered: bounds.order === 'key',
  });
}

function advance({ layout }: Run, next: State, partition: number, finding: SequenceFinding): void {
  next[layout.position + partition]!++;
  if (finding.kind !== 'next' && finding.kind !== 'hole') return;
  next[layout.counted + partition] = Number(finding.state.last);
  next[layout.base + partition] = Number(finding.state.base);
}

/** The handler fails until the shipped decision gives up: then the event is parked. */
function fail(run: Run, world: State, step: Step, partition: number, event: number, finding: SequenceFinding): void {
  const { bounds, layout } = run;
  if (afterFailure('handler', { handler: 1, conflict: 0, outage: 0 }, 1).kind !== 'give-up') return;
  if (knownOutcome(world[layout.inbox + event]!, 'event') !== undefined) return;
  const gate = gateOf(world[layout.gate + keyOf(bounds, event)]!, 'event');
  const number = numberOf(world[layout.stamp + event]!);
  if (number !== 0 && number !== (gate?.lastNumber ?? 0) + 1) return;
  if (entryOf(run, world, event, number !== 0) !== 'apply') return;
  step(
    'chance',
    () => `the consumer reads ${nameOf(bounds, event)}: its handler fails for good, and it is parked`,
    (next) => {
      advance(run, next, partition, finding);
      holdEvent(run, next, event, 'parked');
      return undefined;
    },
  );
}

/** What worlds that are broken have in memory between two transactions. */
function finishInHand(run: Run, world: State, step: Step, partition: number): void {
  const { bounds, layout, breakage } = run;
  const event = world[layout.inHand + partition]! - 1;
  const name = nameOf(bounds, event);
  if (breakage === 'no-lock-on-hold') {
    const { finding } = look(run, world, partition);
    step(
      'progress',
      () => `${name} is held`,
      (next) => {
        next[layout.inHand + partition] = 0;
        holdEvent(run, next, event, 'early');
        advance(run, next, partition, finding);
        return undefined;
      },
    );
    return;
  }
  let told = '';
  step(
    'progress',
    () => `the transaction of ${name} commits: ${told}`,
    (next) => {
      next[layout.inHand + partition] = 0;
      const { verdict, broken } = applyArrival(run, next, event, { path: 'event', outcome: 'applied', isNew: false });
      const after = afterVerdict(verdict, name);
      told = after.kind;
      if (after.kind === 'hold') holdEvent(run, next, event, after.reason);
      return broken;
    },
  );
}

/**
 * Held events that can go on: found by the sweep of the consumer's process at any time; or, where there is none, by whoever has
 * applied a number, until none is left.
 */
function drain(run: Run, world: State, step: Step, key: number): void {
  const { bounds, layout } = run;
  if (!bounds.sweepsHeld && world[layout.draining + key] === 0) return;
  const event = nextHeldOf(run, world, key);
  if (event === undefined) {
    if (bounds.sweepsHeld) return;
    step(
      'progress',
      () => `nothing that waits for key ${keyNames[key]} can go on`,
      (next) => {
        next[layout.draining + key] = 0;
        return undefined;
      },
    );
    return;
  }
  step(
    'progress',
    () => `${nameOf(bounds, event)}, which was held, is applied`,
    (next) => applyHeld(run, next, event),
  );
  if (bounds.failing?.includes(event) !== true || knownOutcome(world[layout.inbox + event]!, 'event') !== undefined)
    return;
  step(
    'chance',
    () => `${nameOf(bounds, event)}, which was held, fails for good and is parked`,
    (next) => {
      next[layout.held + event] = heldAs.parked;
      return undefined;
    },
  );
}

/** An operator lets a parked event be tried again, or skips it when its turn has come. */
function parked(run: Run, world: State, step: Step): void {
  const { bounds, layout } = run;
  for (let event = 0; event < bounds.keys * bounds.events; event++) {
    if (world[layout.held + event] !== heldAs.parked) continue;
    step(
      'progress',
      () => `an operator lets ${nameOf(bounds, event)} be tried again`,
      (next) => {
        next[layout.held + event] = heldAs.behind;
        return undefined;
      },
    );
    const number = numberOf(world[layout.stamp + event]!);
    const last = gateOf(world[layout.gate + keyOf(bounds, event)]!, 'event')?.lastNumber ?? 0;
    if (number !== 0 && number !== last + 1) continue;
    step(
      'chance',
      () => `an operator skips ${nameOf(bounds, event)}`,
      (next) => record(run, next, event, 'event', 'skipped', 'operator'),
    );
  }
}

/** What is in the memory of the consumer's process is gone. In the world as it is built that is nothing. */
function crash({ bounds, layout, breakage }: Run, world: State, step: Step): void {
  // Then the step leads back to where it began.
  if (breakage === undefined || !bounds.sweepsHeld) return;
  step(
    'chance',
    () => 'the process of the consumer crashes and starts again',
    (next) => {
      for (let event = 0; event < bounds.keys * bounds.events; event++)
        if ((world[layout.held + event]! & inMemory) !== 0) next[layout.held + event] = heldAs.none;
      for (let partition = 0; partition < bounds.partitions; partition++) next[layout.inHand + partition] = 0;
      return undefined;
    },
  );
}

function rewind({ bounds, layout }: Run, world: State, step: Step, partition: number): void {
  if (world[layout.rewinds]! >= bounds.rewinds || world[layout.inHand + partition] !== 0) return;
  for (let offset = 0; offset < world[layout.position + partition]!; offset++) {
    step(
      'chance',
      () => `the position is set back to ${offset}`,
      (next) => {
        next[layout.rewinds]!++;
        next[layout.position + partition] = offset;
        return undefined;
      },
    );
  }
}

/** Time passes: an outcome leaves the inbox. Of unordered events only after their effect; their retention is a promise of its user. */
function age(run: Run, world: State, step: Step): void {
  const { bounds, layout, breakage } = run;
  for (const event of bounds.ageing ?? []) {
    const inbox = world[layout.inbox + event]!;
    if (world[layout.stamp + event] === 0 || (inbox & tooOld) !== 0) continue;
    if (bounds.order === 'none' && world[layout.effect + event] === effects.none) continue;
    step(
      'chance',
      () => `${nameOf(bounds, event)} grows older than the inbox keeps outcomes`,
      (next) => {
        next[layout.inbox + event] = tooOld;
        return undefined;
      },
    );
  }
  if (breakage !== 'gates-expire') return;
  for (let key = 0; key < bounds.keys; key++) {
    const events = Array.from({ length: bounds.events }, (_, index) => key * bounds.events + index);
    const isYoung = events.some(
      (event) => world[layout.effect + event] !== 0 && (world[layout.inbox + event]! & tooOld) === 0,
    );
    if (world[layout.gate + key] === 0 || isYoung) continue;
    step(
      'chance',
      () => `the gate of key ${keyNames[key]} is forgotten`,
      (next) => {
        next[layout.gate + key] = 0;
        return undefined;
      },
    );
  }
}
