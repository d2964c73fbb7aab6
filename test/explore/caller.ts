// Calls: by the process that published, by the sweeper, and those that are on the network without anyone waiting for them.
//
// Of one key one call at a time has somebody who waits for its answer. A second one beside it could only add its own request, which
// is what a call without a caller (`zombies`) does, and delete rows whose outcome is there.
import type { Outcome } from '../../src/inbox/index.ts';
import { afterAnswer } from '../../src/switchover/index.ts';
import type { Answered, Next } from '../../src/switchover/index.ts';
import { adopt, claimable } from '../../src/switchover/calls/due.ts';
import type { OwedRow } from '../../src/switchover/calls/due.ts';
import { answerTo, outcomeOf } from '../../src/switchover/endpoint/gate-answer.ts';
import type { HandlerAnswer } from '../../src/switchover/endpoint/gate-answer.ts';
import { applyArrival } from './apply.ts';
import { withKeyNumber } from './producer.ts';
import { remembered } from './run.ts';
import type { Run, Step } from './run.ts';
import type { State } from './search.ts';
import { epochOf, flag, keyNames, keyOf, nameOf, numberOf, packCall, rows, unpackCall } from './world.ts';
import type { Call } from './world.ts';

export function callerSteps(run: Run, world: State, step: Step): void {
  const { bounds, layout } = run;
  let calls = 0;
  let zombies = 0;
  for (let key = 0; key < bounds.keys; key++) if (world[layout.call + key] !== 0) calls++;
  for (let event = 0; event < bounds.keys * bounds.events; event++) zombies += world[layout.zombies + event]!;
  adoption(run, world, step);
  const mayCopy = zombies < bounds.zombies;
  if (calls < bounds.calls) begin(run, world, step, mayCopy);
  for (let key = 0; key < bounds.keys; key++) {
    if (world[layout.call + key] === 0) continue;
    const call = unpackCall(world[layout.call + key]!);
    if (call.answered) takeAnswer(run, world, step, key, call);
    else send(run, world, step, key, { call, mayCopy });
    giveUp(run, world, step, key, { call, mayCopy });
  }
  lateArrivals(run, world, step);
}

const timeoutMs = 1;
/** Long after whatever was adopted or leased before. */
const now = 1_000;

function owedRows({ bounds, layout }: Run, world: State): (OwedRow & { readonly event: number })[] {
  const owed: (OwedRow & { event: number })[] = [];
  for (let event = 0; event < bounds.keys * bounds.events; event++) {
    const row = world[layout.row + event]!;
    if (row === rows.none) continue;
    const number = numberOf(world[layout.stamp + event]!);
    owed.push({
      event,
      effectKey: nameOf(bounds, event),
      switchover: 's',
      consumer: 'c',
      topic: 't',
      key: keyNames[keyOf(bounds, event)]!,
      turn: number === 0 ? undefined : { generation: 1, number },
      dueAt: row === rows.due ? 0 : undefined,
    });
  }
  return owed;
}

/** The sweeper sees rows that a process promised to deliver, and their time passes. */
function adoption(run: Run, world: State, step: Step): void {
  if (run.breakage === 'no-sweeper') return;
  const adopted = adopt(owedRows(run, world), { switchover: 's', now: 0, timeoutMs });
  if (adopted.length === 0) return;
  step(
    'progress',
    () => `the sweeper finds ${adopted.map(({ effectKey }) => effectKey).join(', ')} left behind: due`,
    (next) => {
      for (const { event } of adopted) next[run.layout.row + event] = rows.due;
      return undefined;
    },
  );
}

function begin(run: Run, world: State, step: Step, mayCopy: boolean): void {
  const { bounds, layout, breakage } = run;
  const start = (event: number, by: Call['by']): void => {
    const key = keyOf(bounds, event);
    if (world[layout.call + key] !== 0) return;
    const index = event - key * bounds.events;
    if (bounds.coarse === true) {
      send(run, world, step, key, { call: { target: index, current: index, by, answered: false }, mayCopy });
      return;
    }
    step(
      'progress',
      () => `the ${by} calls for ${nameOf(bounds, event)}`,
      (next) => {
        next[layout.call + key] = packCall({ target: index, current: index, by, answered: false });
        return undefined;
      },
    );
  };
  const promised = bounds.coarse === true ? rows.due : rows.promised;
  for (let event = 0; event < bounds.keys * bounds.events; event++)
    if (world[layout.row + event] === promised) start(event, 'publisher');
  if (breakage === 'no-sweeper') return;
  for (const { event } of claimable(owedRows(run, world), { switchover: 's', now, limit: 8 })) start(event, 'sweeper');
}

const answered = remembered<Answered>();

/** A call arrives at the endpoint: gate, old handler, outcome and answer, by the shipped decisions. */
function receive(
  run: Run,
  next: State,
  event: number,
  given: HandlerAnswer,
): { readonly answer: Answered; readonly broken?: string } {
  const { layout, breakage } = run;
  if ((next[layout.flags]! & flag.endpointGone) !== 0) return { answer: foreign };
  const epoch = epochOf(next[layout.stamp + event]!);
  if (breakage === 'drops-old-epochs') {
    if (epoch < next[layout.highestEpoch]!) {
      const headers = { 'turnout-outcome': 'skipped' };
      return { answer: { kind: 'answer', status: 200, headers } };
    }
    next[layout.highestEpoch] = epoch;
  }
  const outcome = given === refusing ? refusal : acceptance;
  const { verdict, broken } = applyArrival(run, next, event, { path: 'rpc', outcome, isNew: false });
  const detail =
    verdict.kind === 'done'
      ? 16 + ['applied', 'rejected', 'skipped', 'dead'].indexOf(verdict.outcome) * 2 + (verdict.repeated ? 1 : 0)
      : verdict.kind === 'early'
        ? verdict.lastNumber
        : 32 + ['running', 'reused', 'halted'].indexOf(verdict.kind);
  const answer = answered(detail * 2 + (given === refusing ? 1 : 0), () => {
    const said = answerTo(verdict, given);
    if (said.kind === 'pass') return { kind: 'failed', why: 'passed' };
    const status = said.kind === 'handler' ? said.answer.status : said.status;
    return { kind: 'answer', status, headers: said.headers as Record<string, string> };
  });
  return broken === undefined ? { answer } : { answer, broken };
}

const accepting: HandlerAnswer = { status: 201, headers: {}, body: Buffer.alloc(0) };
const refusing: HandlerAnswer = { status: 422, headers: {}, body: Buffer.alloc(0) };
/** What the shipped decision makes of the two. */
const acceptance: Outcome = outcomeOf(accepting, undefined, 0)!.outcome;
const refusal: Outcome = outcomeOf(refusing, undefined, 0)!.outcome;

/** What the old handler may answer. */
const answersOf = ({ bounds }: Run, event: number): readonly HandlerAnswer[] =>
  bounds.refused?.includes(event) === true ? [accepting, refusing] : [accepting];
/** What a proxy says, or whatever stands where the endpoint was. */
const foreign: Answered = { kind: 'answer', status: 404, headers: {} };

/** What follows, by the shipped decision, as a byte: done, owed still, ask again, or send from the number after this one less 4. */
const follows = { done: 1, pending: 2, poll: 3, resend: 4 } as const;

function followUp(run: Run, world: State, event: number, answer: Answered): number {
  const number = numberOf(world[run.layout.stamp + event]!);
  const next: Next = afterAnswer(number === 0 ? undefined : { generation: 1, number }, answer);
  return next.kind === 'resend' ? follows.resend + next.after.number : follows[next.kind];
}

interface Sent {
  readonly call: Call;
  /** Whether another copy of the call may be on the network. */
  readonly mayCopy: boolean;
}

function send(run: Run, world: State, step: Step, key: number, { call, mayCopy }: Sent): void {
  const { bounds, layout, breakage } = run;
  const event = key * bounds.events + call.current;
  const name = nameOf(bounds, event);
  for (const given of answersOf(run, event)) arrival(run, step, key, { call, mayCopy }, given);
  if (mayCopy && bounds.coarse === true) {
    step(
      'chance',
      () => `the ${call.by} calls for ${name}; the call is late, and nobody waits for it any more`,
      (next) => {
        next[layout.zombies + event]!++;
        stayOwed(run, next, key, call);
        return undefined;
      },
    );
  }
  step(
    'chance',
    () => `a proxy answers the call for ${name} with 404; it never arrives`,
    (next) => {
      const counts = breakage === 'foreign-4xx-counts';
      proceed(run, next, key, call, counts ? follows.done : followUp(run, next, event, foreign));
      return undefined;
    },
  );
}

/** The call arrives; its answer comes back, or is lost. */
function arrival(run: Run, step: Step, key: number, { call, mayCopy }: Sent, given: HandlerAnswer): void {
  const { bounds, layout } = run;
  const event = key * bounds.events + call.current;
  const name = nameOf(bounds, event);
  let follow = 0;
  const arrive = (next: State): string | undefined => {
    const { answer, broken } = receive(run, next, event, given);
    follow = followUp(run, next, event, answer);
    return broken;
  };
  const arrives = (): string =>
    `the call for ${name} arrives${given === refusing ? ', the handler would refuse it' : ''}`;
  const take = (next: State): void => {
    if (bounds.slowAnswers === true) {
      next[layout.call + key] = packCall({ ...call, answered: true });
      next[layout.answer + key] = follow;
    } else proceed(run, next, key, call, follow);
  };
  step(
    given === accepting ? 'progress' : 'chance',
    () => `${arrives()}: ${followText(follow)}`,
    (next) => {
      const broken = arrive(next);
      take(next);
      return broken;
    },
  );
  if (mayCopy) {
    step(
      'chance',
      () => `${arrives()}, and a copy of it stays on the network: ${followText(follow)}`,
      (next) => {
        const broken = arrive(next);
        take(next);
        next[layout.zombies + event]!++;
        return broken;
      },
    );
  }
  if (bounds.slowAnswers !== true) {
    step(
      'chance',
      () => `${arrives()}, and its answer is lost`,
      (next) => {
        const broken = arrive(next);
        proceed(run, next, key, call, follows.pending);
        return broken;
      },
    );
  }
}

function takeAnswer(run: Run, world: State, step: Step, key: number, call: Call): void {
  const { bounds, layout } = run;
  const follow = world[layout.answer + key]!;
  step(
    'progress',
    () => `the answer for ${nameOf(bounds, key * bounds.events + call.current)} comes back: ${followText(follow)}`,
    (next) => {
      next[layout.answer + key] = 0;
      proceed(run, next, key, { ...call, answered: false }, follow);
      return undefined;
    },
  );
}

/** As deliverCall: a row goes with its outcome; missing events are sent one after the other, whatever their route; else the row stays. */
function proceed(run: Run, next: State, key: number, call: Call, follow: number): void {
  const { bounds, layout } = run;
  const first = key * bounds.events;
  if (follow === follows.done) {
    next[layout.row + first + call.current] = rows.none;
    if (call.current === call.target) next[layout.call + key] = 0;
    else goOn(run, next, key, call, numberOf(next[layout.stamp + first + call.current]!) + 1);
  } else if (follow >= follows.resend && call.current === call.target) {
    goOn(run, next, key, call, follow - follows.resend + 1);
  } else if (follow === follows.poll && call.current === call.target) {
    next[layout.call + key] = packCall(call);
  } else {
    stayOwed(run, next, key, call);
  }
}

function goOn(run: Run, next: State, key: number, call: Call, number: number): void {
  const current = withKeyNumber(run, next, key, number);
  if (current === undefined) stayOwed(run, next, key, call);
  else next[run.layout.call + key] = packCall({ ...call, current });
}

function stayOwed({ bounds, layout }: Run, next: State, key: number, { target }: Call): void {
  next[layout.call + key] = 0;
  const row = layout.row + key * bounds.events + target;
  if (next[row] !== rows.none) next[row] = rows.due;
}

/** Nobody waits any more: too late, or the caller has crashed. What was sent is lost, or still on its way. */
function giveUp(run: Run, world: State, step: Step, key: number, { call, mayCopy }: Sent): void {
  const { bounds, layout } = run;
  const event = key * bounds.events + call.current;
  const name = nameOf(bounds, event);
  const what = call.answered ? 'its answer' : 'the call';
  const ways = call.answered || !mayCopy ? ([false] as const) : ([false, true] as const);
  for (const isUnderWay of ways) {
    const leave = (next: State): void => {
      next[layout.answer + key] = 0;
      if (isUnderWay) next[layout.zombies + event]!++;
    };
    const fate = isUnderWay ? 'is still on its way' : 'is lost';
    step(
      'chance',
      () => `the ${call.by} waits no longer for ${name}; ${what} ${fate}`,
      (next) => {
        leave(next);
        stayOwed(run, next, key, call);
        return undefined;
      },
    );
    if (call.by === 'sweeper') continue;
    step(
      'chance',
      () => `the publisher crashes while it calls for ${name}; ${what} ${fate}`,
      (next) => {
        leave(next);
        next[layout.call + key] = 0;
        const row = layout.row + key * bounds.events + call.target;
        if (next[row] === rows.promised) next[row] = rows.orphaned;
        return undefined;
      },
    );
  }
}

function lateArrivals(run: Run, world: State, step: Step): void {
  const { bounds, layout } = run;
  for (let event = 0; event < bounds.keys * bounds.events; event++) {
    if (world[layout.zombies + event] === 0) continue;
    for (const given of answersOf(run, event)) {
      let follow = 0;
      step(
        'progress',
        () =>
          `a call for ${nameOf(bounds, event)} that nobody waits for arrives: ${followText(follow)}, told to nobody`,
        (next) => {
          next[layout.zombies + event]!--;
          const { answer, broken } = receive(run, next, event, given);
          follow = followUp(run, next, event, answer);
          return broken;
        },
      );
    }
  }
}

function followText(follow: number): string {
  if (follow === follows.done) return 'it has its outcome';
  if (follow === follows.pending) return 'no outcome';
  if (follow === follows.poll) return 'running';
  return `early, the last number is ${follow - follows.resend}`;
}
