// The producing service, its database, the relay, and the operator who changes stages.
import { rampBucket } from '../../src/switchover/index.ts';
import type { Stage } from '../../src/switchover/index.ts';
import { stageChange } from '../../src/switchover/stage.ts';
import type { StageDecision } from '../../src/switchover/stage.ts';
import { stampEvents } from '../../src/switchover/stages/stamping.ts';
import type { EventStamp, KeyNumber, StampingRow } from '../../src/switchover/stages/stamping.ts';
import { remembered } from './run.ts';
import type { Run, Step } from './run.ts';
import type { State } from './search.ts';
import {
  committedOf,
  countedOf,
  epochOf,
  flag,
  givenOf,
  indexOf,
  keyNames,
  keyOf,
  nameOf,
  numberOf,
  packSnapshot,
  packStamp,
  partitionOf,
  rows,
  stageCode,
  stageNamed,
  stageOfSnapshot,
} from './world.ts';
import type { Bounds, Layout } from './world.ts';

/** With this one, `ramp` at 50 % routes key `a` to events and key `b` to calls. */
const salt = saltThatParts('a', 'b');
const percent = 50;

function saltThatParts(one: string, other: string): string {
  for (let number = 0; ; number++)
    if (rampBucket(`${number}`, one) < 5_000 && rampBucket(`${number}`, other) >= 5_000) return `${number}`;
}

export function producerSteps(run: Run, world: State, step: Step): void {
  for (let key = 0; key < run.bounds.keys; key++) {
    publish(run, world, step, key);
    dropSnapshot(run, world, step, key);
    commit(run, world, step, key);
  }
  ownCalls(run, world, step);
  relay(run, world, step);
  changeStage(run, world, step);
  removeEndpoint(run, world, step);
  recordStart(run, world, step);
  redrive(run, world, step);
}

const stampOf = remembered<EventStamp | undefined>();

/** What `publish` writes for one event, by the shipped decision. As one byte. */
function stamped(run: Run, key: number, stage: Stage, epoch: number, counted: number, declares: boolean): number {
  if (!declares) return packStamp('undeclared', 0, 0);
  const { order } = run.bounds;
  const isDropping = run.breakage === 'no-stamps-after-done' && stage === 'done';
  const place = ((stageCode(stage) * 8 + epoch) * 4 + counted) * 2 + key;
  const code = (place * 2 + (order === 'key' ? 1 : 0)) * 2 + (isDropping ? 1 : 0);
  const stamp = stampOf(code, () => {
    const row: StampingRow = { name: 's', consumer: 'c', order, stage, percent, salt, epoch, generation: 1 };
    const topic = 't';
    const number: KeyNumber = { consumer: 'c', topic, key: keyNames[key]!, generation: 1, number: counted };
    const { stamps } = stampEvents({
      rows: isDropping ? [] : [row],
      numbers: counted === 0 ? [] : [number],
      events: [{ id: 'e', topic, key: keyNames[key]!, switchovers: ['s'] }],
    });
    return stamps[0]![0];
  });
  if (stamp === undefined) return packStamp('dropped', 0, 0);
  const isNumbered = stamp.turn !== undefined && run.breakage !== 'no-key-number';
  return packStamp(stamp.route, stamp.epoch, isNumbered ? stamp.turn.number : 0);
}

/** A transaction publishes: it stamps, and holds the lock of the key until it commits. One that is rolled back leaves no trace. */
function publish(run: Run, world: State, step: Step, key: number): void {
  const { bounds, layout } = run;
  const index = committedOf(bounds, layout, world, key);
  if (index === bounds.events || world[layout.open + key] !== 0) return;
  // Where the keys differ in nothing but their names, whichever is published first is called `a`.
  if (key === 1 && world[layout.stamp] === 0 && areAlike(bounds)) return;
  const event = key * bounds.events + index;
  const counted = countedOf(bounds, layout, world, key);
  const stage = stageNamed(world[layout.stage]!);
  const epoch = world[layout.epoch]!;
  const name = nameOf(bounds, event);

  const stamp = stamped(run, key, stage, epoch, counted, true);
  if (bounds.coarse === true) {
    publishAtOnce(run, step, event, stamp, `${name} is published in stage ${stage}: ${stampText(stamp)}`);
    return;
  }
  step(
    'progress',
    () => `${name} is published in stage ${stage}: ${stampText(stamp)}; its transaction is open`,
    (next) => {
      next[layout.open + key] = stamp;
      return undefined;
    },
  );
  if (bounds.undeclared?.includes(event) === true) {
    step(
      'chance',
      () => `${name} is published by code that does not declare the switchover; its transaction is open`,
      (next) => {
        next[layout.open + key] = packStamp('undeclared', 0, 0);
        return undefined;
      },
    );
  }
  if (bounds.oldSnapshots !== true) return;
  const snapshot = world[layout.snapshot + key]!;
  if (snapshot === 0) {
    step(
      'chance',
      () => `a transaction that will publish for key ${keyNames[key]} takes its snapshot in stage ${stage}`,
      (next) => {
        next[layout.snapshot + key] = packSnapshot(world[layout.stage]!, epoch, counted);
        return undefined;
      },
    );
    return;
  }
  publishFromSnapshot(run, world, step, key, counted, name);
}

const areAlike = (bounds: Bounds): boolean =>
  bounds.coarse === true &&
  !bounds.stages.includes('ramp') &&
  [bounds.refused, bounds.failing, bounds.undeclared, bounds.ageing].every((some) => some === undefined);

function publishAtOnce({ bounds, layout }: Run, step: Step, event: number, stamp: number, label: string): void {
  step(
    'progress',
    () => label,
    (next) => {
      next[layout.stamp + event] = stamp;
      if (givenOf(stamp) === 'rpc') next[layout.row + event] = rows.due;
      next[layout.relayed + keyOf(bounds, event)]!++;
      append(bounds, layout, next, event);
      return undefined;
    },
  );
}

/** The snapshot is older than the lock: a stage change since then is not seen, but the tables that are written to are the present ones. */
function publishFromSnapshot(run: Run, world: State, step: Step, key: number, counted: number, name: string): void {
  const { bounds, layout, breakage } = run;
  const snapshot = world[layout.snapshot + key]!;
  const stage = stageNamed(stageOfSnapshot(snapshot));
  const stamp = stamped(run, key, stage, epochOf(snapshot), numberOf(snapshot), true);
  const isOutrun = bounds.order === 'key' && numberOf(snapshot) !== counted;
  const isClosed = (world[layout.flags]! & flag.closed) !== 0 && breakage !== 'done-by-xmin';
  const isRefused = isOutrun || (isClosed && givenOf(stamp) === 'rpc');
  step(
    'progress',
    () =>
      isRefused
        ? `the old transaction of key ${keyNames[key]} gets an error and is rolled back`
        : `${name} is published with the old snapshot, as in stage ${stage}: ${stampText(stamp)}`,
    (next) => {
      next[layout.snapshot + key] = 0;
      if (!isRefused) next[layout.open + key] = stamp;
      return undefined;
    },
  );
}

/** A transaction that has looked at the stage, and then publishes nothing. */
function dropSnapshot({ layout }: Run, world: State, step: Step, key: number): void {
  if (world[layout.snapshot + key] === 0) return;
  step(
    'progress',
    () => `the old transaction of key ${keyNames[key]} ends without publishing`,
    (next) => {
      next[layout.snapshot + key] = 0;
      return undefined;
    },
  );
}

function commit({ bounds, layout, breakage }: Run, world: State, step: Step, key: number): void {
  const stamp = world[layout.open + key]!;
  if (stamp === 0) return;
  const event = key * bounds.events + committedOf(bounds, layout, world, key);
  const route = breakage === 'route-not-stamped' ? routeNow({ layout }, world, key) : givenOf(stamp);
  step(
    'progress',
    () => `${nameOf(bounds, event)} commits${route === 'rpc' ? '; its call is owed' : ''}`,
    (next) => {
      next[layout.open + key] = 0;
      next[layout.stamp + event] = stamp;
      if (route === 'rpc') next[layout.row + event] = rows.promised;
      return undefined;
    },
  );
  if (route !== 'rpc') return;
  step(
    'chance',
    () => `${nameOf(bounds, event)} commits; its call is owed, and the process that promised it crashes`,
    (next) => {
      next[layout.open + key] = 0;
      next[layout.stamp + event] = stamp;
      next[layout.row + event] = rows.orphaned;
      return undefined;
    },
  );
}

/** The route that somebody would compute now: what nobody must do. */
export function routeNow({ layout }: Pick<Run, 'layout'>, world: State, key: number): 'rpc' | 'event' {
  const stage = stageNamed(world[layout.stage]!);
  const row: StampingRow = { name: 's', consumer: 'c', order: 'none', stage, percent, salt, epoch: 1, generation: 1 };
  const { stamps } = stampEvents({
    rows: [row],
    numbers: [],
    events: [{ id: 'e', topic: 't', key: keyNames[key]!, switchovers: ['s'] }],
  });
  return stamps[0]![0]!.route;
}

/** Code that does not declare the switchover makes its call by itself, as before: with no headers, and it may get lost. */
function ownCalls({ bounds, layout }: Run, world: State, step: Step): void {
  for (const event of bounds.undeclared ?? []) {
    const stamp = world[layout.stamp + event]!;
    if (stamp === 0 || givenOf(stamp) !== 'undeclared' || world[layout.effect + event] !== 0) continue;
    step(
      'chance',
      () => `the old code makes the call for ${nameOf(bounds, event)} itself; it has its effect`,
      (next) => {
        next[layout.effect + event] = 1;
        return undefined;
      },
    );
  }
}

function append(bounds: Bounds, layout: Layout, next: State, event: number): void {
  const partition = partitionOf(bounds, event);
  next[layout.log + partition * layout.logMost + next[layout.logLength + partition]!++] = event + 1;
}

/** Publishes what is committed to the log, of each key in order; and, after a crash, the last messages again. */
function relay({ bounds, layout }: Run, world: State, step: Step): void {
  for (let key = 0; key < bounds.keys; key++) {
    const relayed = world[layout.relayed + key]!;
    if (relayed === committedOf(bounds, layout, world, key)) continue;
    const event = key * bounds.events + relayed;
    step(
      'progress',
      () => `the relay sends ${nameOf(bounds, event)} to Kafka`,
      (next) => {
        next[layout.relayed + key]!++;
        append(bounds, layout, next, event);
        return undefined;
      },
    );
  }
  for (let partition = 0; partition < bounds.partitions; partition++) {
    const length = world[layout.logLength + partition]!;
    for (let count = 1; count <= Math.min(length, bounds.repeats - world[layout.repeats]!); count++) {
      step(
        'chance',
        () => `the relay crashes and sends the last ${count} of partition ${partition} again`,
        (next) => {
          next[layout.repeats]! += count;
          for (let offset = length - count; offset < length; offset++)
            append(bounds, layout, next, world[layout.log + partition * layout.logMost + offset]! - 1);
          return undefined;
        },
      );
    }
  }
}

/** An operator changes the stage, by the shipped decision; forced, since checks are no part of this world. */
function changeStage(run: Run, world: State, step: Step): void {
  const { bounds, layout, breakage } = run;
  if (world[layout.flips]! >= bounds.flips) return;
  const stage = stageNamed(world[layout.stage]!);
  const flags = world[layout.flags]!;
  const sinceRecorded = (flags & flag.sinceRecorded) !== 0 || breakage === 'promotes-before-since';
  let owedCalls = 0;
  for (let event = 0; event < bounds.keys * bounds.events; event++) if (world[layout.row + event] !== 0) owedCalls++;
  for (const to of bounds.stages) {
    const code = ((stageCode(stage) * 8 + stageCode(to)) * 2 + (sinceRecorded ? 1 : 0)) * 16 + owedCalls;
    const decision = changes(code * 2 + (bounds.order === 'key' ? 1 : 0), () =>
      stageChange(
        { stage, percent: stage === 'ramp' ? percent : 0, endpoint: 'wrapped', order: bounds.order, sinceRecorded },
        { stage: to, percent: to === 'ramp' ? percent : undefined, reason: 'explored', force: true },
        { undeclaredEvents: 0, verdict: 'ready', owedCalls },
      ),
    );
    if (decision.kind !== 'changed') continue;
    if (decision.calls === 'closes' && isStampingCalls(run, world)) continue;
    step(
      'chance',
      () => `the stage changes from ${stage} to ${to}`,
      (next) => {
        next[layout.stage] = stageCode(to);
        next[layout.epoch]!++;
        next[layout.flips]!++;
        if (decision.calls === 'closes') next[layout.flags] = flags | flag.closed;
        if (decision.calls === 'opens') next[layout.flags] = flags & ~flag.closed;
        return undefined;
      },
    );
  }
}

const changes = remembered<StageDecision>();

/**
 * Whether the rows of rpc_open can't be deleted yet: a transaction that has stamped a call holds one of them. By its transaction
 * id, any that has published would be waited for, but none that has yet to.
 */
function isStampingCalls({ bounds, layout, breakage }: Run, world: State): boolean {
  for (let key = 0; key < bounds.keys; key++) {
    const open = world[layout.open + key]!;
    if (open !== 0 && (breakage === 'done-by-xmin' || givenOf(open) === 'rpc')) return true;
  }
  return false;
}

/** After `done` nobody calls it any more, so that it may go. */
function removeEndpoint({ bounds, layout }: Run, world: State, step: Step): void {
  const flags = world[layout.flags]!;
  if (bounds.removesEndpoint !== true || stageNamed(world[layout.stage]!) !== 'done') return;
  if ((flags & flag.endpointGone) !== 0) return;
  step(
    'chance',
    () => 'the old endpoint is taken away',
    (next) => {
      next[layout.flags] = flags | flag.endpointGone;
      return undefined;
    },
  );
}

/** Commits the group's offsets at the end of the log, and records them. */
function recordStart({ bounds, layout }: Run, world: State, step: Step): void {
  const flags = world[layout.flags]!;
  if ((flags & flag.sinceRecorded) !== 0) return;
  step(
    'progress',
    () => 'the start of the consumer is recorded: at the end of the log, or where it has started',
    (next) => {
      next[layout.flags] = flags | flag.sinceRecorded;
      if ((flags & flag.started) !== 0) return undefined;
      for (let partition = 0; partition < bounds.partitions; partition++)
        next[layout.since + partition] = world[layout.logLength + partition]!;
      return undefined;
    },
  );
}

/** `turnout switch <name> rpc --redrive`: calls are owed for what was routed to events, too. */
function redrive({ bounds, layout }: Run, world: State, step: Step): void {
  if (bounds.redrive !== true || stageNamed(world[layout.stage]!) !== 'rpc') return;
  const backlog: number[] = [];
  for (let event = 0; event < bounds.keys * bounds.events; event++) {
    const stamp = world[layout.stamp + event]!;
    if (stamp !== 0 && givenOf(stamp) === 'event' && world[layout.row + event] === rows.none) backlog.push(event);
  }
  if (backlog.length === 0) return;
  step(
    'chance',
    () =>
      `calls are made to be owed for what went by event: ${backlog.map((event) => nameOf(bounds, event)).join(', ')}`,
    (next) => {
      for (const event of backlog) next[layout.row + event] = rows.due;
      return undefined;
    },
  );
}

function stampText(stamp: number): string {
  const given = givenOf(stamp);
  if (given === 'dropped') return 'no stamp';
  if (given === 'undeclared') return 'not declared';
  const number = numberOf(stamp) === 0 ? '' : `, number ${numberOf(stamp)}`;
  return `route ${given}, epoch ${epochOf(stamp)}${number}`;
}

/** The event of a key that has a number; undefined if none is committed. */
export function withKeyNumber({ bounds, layout }: Run, world: State, key: number, number: number): number | undefined {
  for (let event = key * bounds.events; event < (key + 1) * bounds.events; event++)
    if (world[layout.stamp + event] !== 0 && numberOf(world[layout.stamp + event]!) === number)
      return indexOf(bounds, event);
  return undefined;
}
