import { createHash } from 'node:crypto';
import type { ErrorCode } from '../errors/index.ts';
import type { Ordering, Route } from '../event/index.ts';

/** How far a consumer has moved: all calls; calls with the event path observed; some keys on events; all on events; for good. */
export type Stage = 'rpc' | 'shadow' | 'ramp' | 'event' | 'done';

export const stages = ['rpc', 'shadow', 'ramp', 'event', 'done'] as const satisfies readonly Stage[];

/**
 * Where each stage may go. Every way back is open until `done`, which is final: then the old endpoint may be gone.
 * {@link stageChange} says what each needs.
 */
export const transitions: Readonly<Record<Stage, readonly Stage[]>> = {
  rpc: ['shadow', 'ramp', 'event'],
  shadow: ['rpc', 'ramp', 'event'],
  ramp: ['rpc', 'shadow', 'ramp', 'event'],
  event: ['rpc', 'shadow', 'ramp', 'done'],
  done: [],
};

/** Whether `text` names a stage. */
export function isStage(text: string): text is Stage {
  return (stages as readonly string[]).includes(text);
}

/** Whether a change leads forward: more events than before. Those need checks; the way back needs nothing. */
export function isPromotion(from: Stage, to: Stage): boolean {
  return stages.indexOf(to) > stages.indexOf(from);
}

/** What a stage change depends on, of the switchover's row. */
export interface StageRow {
  readonly stage: Stage;
  readonly percent: number;
  readonly endpoint: 'wrapped' | 'bridged';
  readonly order: Ordering;
  /** Whether the consumer's start is recorded. */
  readonly sinceRecorded: boolean;
}

/** What somebody asks for; any text may come as the stage. */
export interface StageRequest {
  readonly stage: string;
  /** Above 0 and up to 100, to two places, for `ramp`; none for the others. */
  readonly percent?: number | undefined;
  readonly reason: string;
  readonly force?: boolean;
  /** By a guardrail: goes back only. */
  readonly automatic?: boolean;
}

/** What else counts at that moment. */
export interface StageFacts {
  /** Events of late whose publishers don't declare the switchover. */
  readonly undeclaredEvents: number;
  /** Of the newest check for the stage, if it is of this epoch and at most ten minutes old. */
  readonly verdict: 'ready' | 'not-ready' | 'inconclusive' | undefined;
  readonly owedCalls: number;
}

/** Something that stands against a stage change. */
export interface StageProblem {
  readonly code: ErrorCode;
  /** Whether `force` with a reason overrides it. */
  readonly forceable: boolean;
}

export type StageDecision =
  | { readonly kind: 'unchanged' }
  /**
   * `closes`: no call can be stamped any more, once those that are were waited for. `opens`: they can again.
   * `forced`: what was overridden.
   */
  | {
      readonly kind: 'changed';
      readonly stage: Stage;
      readonly percent: number;
      readonly forced: readonly ErrorCode[];
      readonly calls: 'closes' | 'opens' | 'as before';
    }
  | { readonly kind: 'refused'; readonly problems: readonly StageProblem[] };

/**
 * Decides about a stage change: the same decision as `turnout.change_stage` in SQL, which is the one that counts. Of a change that
 * can't be at all nothing else is told; of any other, everything that stands against it.
 */
export function stageChange(current: StageRow, request: StageRequest, facts: StageFacts): StageDecision {
  const { stage: to, force = false, automatic = false } = request;
  // As the column keeps it: to two places.
  const percent = request.percent === undefined ? undefined : Math.round(request.percent * 100) / 100;
  if (to === current.stage && (to !== 'ramp' || percent === current.percent)) return { kind: 'unchanged' };
  if (!isStage(to)) return refused('TURNOUT_STAGE_UNKNOWN');
  const promotes =
    isPromotion(current.stage, to) ||
    (to === 'ramp' && current.stage === 'ramp' && percent !== undefined && percent > current.percent);
  if (automatic && promotes) return refused('TURNOUT_STAGE_ORDER');
  const problems = stageProblems(current, { ...request, stage: to, percent }, facts, promotes);
  const standing = problems.filter(({ forceable }) => !(forceable && force));
  if (standing.length > 0) return { kind: 'refused', problems: standing };
  return {
    kind: 'changed',
    stage: to,
    percent: percent ?? 0,
    forced: problems.map(({ code }) => code),
    calls: to === 'done' || (to === 'event' && drains(current)) ? 'closes' : to === 'rpc' ? 'opens' : 'as before',
  };
}

/** Calls and events of a key must never meet at an endpoint that can't tell their order. */
function drains({ endpoint, order }: StageRow): boolean {
  return endpoint === 'bridged' && order === 'key';
}

function stageProblems(
  current: StageRow,
  { stage: to, percent, reason }: StageRequest & { readonly stage: Stage },
  { undeclaredEvents, verdict, owedCalls }: StageFacts,
  promotes: boolean,
): StageProblem[] {
  if (current.stage === 'done') return [never('TURNOUT_STAGE_FINAL')];
  const rampable = percent !== undefined && percent > 0 && percent <= 100;
  const problems = [
    ...when(reason.trim() === '', never('TURNOUT_REASON_MISSING')),
    ...when(to === 'ramp' ? !rampable : (percent ?? 0) !== 0, never('TURNOUT_PERCENT_INVALID')),
  ];
  if (current.endpoint === 'bridged' && (to === 'shadow' || to === 'ramp'))
    return [...problems, never('TURNOUT_STAGE_UNAVAILABLE')];
  if (!transitions[current.stage].includes(to)) return [...problems, never('TURNOUT_STAGE_ORDER')];
  const needsCheck = promotes || (to === 'rpc' && drains(current));
  return [
    ...problems,
    // Without a start of its own the consumer would skip events that were routed to it.
    ...when(promotes && to !== 'shadow' && !current.sinceRecorded, never('TURNOUT_SINCE_MISSING')),
    ...when(owedCalls > 0 && (to === 'done' || (to === 'event' && drains(current))), never('TURNOUT_CALLS_OWED')),
    ...when(promotes && undeclaredEvents > 0, unlessForced('TURNOUT_UNDECLARED_PUBLISHERS')),
    ...when(needsCheck && verdict === undefined, unlessForced('TURNOUT_CHECKS_MISSING')),
    ...when(needsCheck && verdict !== undefined && verdict !== 'ready', unlessForced('TURNOUT_CHECKS_NOT_READY')),
  ];
}

function refused(code: ErrorCode): StageDecision {
  return { kind: 'refused', problems: [never(code)] };
}

const never = (code: ErrorCode): StageProblem => ({ code, forceable: false });
const unlessForced = (code: ErrorCode): StageProblem => ({ code, forceable: true });
const when = (stands: boolean, problem: StageProblem): StageProblem[] => (stands ? [problem] : []);

/** What a switchover's row says about routes. */
export interface Routing {
  readonly stage: Stage;
  /** 0 to 100, to two places; counts only in `ramp`. */
  readonly percent: number;
  readonly salt: string;
}

/**
 * The route of one event under a stage: the same decision as `turnout.route_for` in SQL, which is the one that counts.
 * `key` is the event's key, or its id if it has none.
 */
export function routeFor({ stage, percent, salt }: Routing, key: string): Route {
  switch (stage) {
    case 'rpc':
    case 'shadow':
      return 'rpc';
    case 'ramp':
      // Rounded: 0.07 * 100 is 7.000000000000001, and SQL counts exactly.
      return rampBucket(salt, key) < Math.round(percent * 100) ? 'event' : 'rpc';
    case 'event':
    case 'done':
      return 'event';
  }
}

/** 0 … 9999, the same for ever for one (salt, key): a higher percentage only adds keys. Equal to `turnout.ramp_bucket`. */
export function rampBucket(salt: string, key: string): number {
  return createHash('md5').update(`${salt}:${key}`).digest().readUInt32BE(0) % 10_000;
}
