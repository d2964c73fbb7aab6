// What sends a switchover back: pure, over plain facts. watch-switchovers.ts collects them every few seconds and acts.
//
//   breached      a limit is passed: back to `to` in ramp and event; in shadow, where no event has an effect, only an alert
//   inconclusive  too little is known for one of the rules: nothing is done, and it is said
//   fine          none of that
//
// Only what happened since the last stage change counts: what a stage before it left behind says nothing about this one, and an
// operator who has promoted again is not fought with old numbers.
import { TurnoutError } from '../../errors/index.ts';
import { lowerBound } from './bounds.ts';
import { mostOutcomes } from './evidence.ts';
import type { ConsumerEvidence } from './evidence.ts';
import { duration } from './findings.ts';
import type { Stage } from '../stage.ts';

/** Limits of the guardrails, for one switchover: `defineSwitchover({ …, guardrails: { … } })`. `false` switches a rule off. */
export interface GuardrailRules {
  /** False: nothing is watched. Default true. */
  readonly enabled?: boolean;
  /** Where a breach leads. Default `'rpc'`. */
  readonly to?: 'rpc' | 'shadow';
  /** Largest share of events that may be parked or dead, in percent of those handled. Default 1. */
  readonly maxFailedPercent?: number | false;
  /** Fewer parked or dead events than this are no breach. Default 3. */
  readonly minFailed?: number;
  /**
   * Largest share of events that handlers may refuse (`rejected`) or that may be `skipped`, in percent of those handled, by its 95 % lower
   * bound: breached only if the share is surely larger. Default 25; a switchover of which many are refused by nature needs more.
   */
  readonly maxRejectedPercent?: number | false;
  /** Most new alarms `sequence-hole` and `unknown-repeat`. Default 0. */
  readonly maxAlarms?: number | false;
  /** How old the oldest published event may get that the consumer has not read, in milliseconds. Default 120,000. */
  readonly maxUnreadMs?: number | false;
  /** For how long an event may be held without being parked, early or behind another, in milliseconds. Default 300,000. */
  readonly maxHeldMs?: number | false;
  /** For how long nobody may consume, in milliseconds. Default 60,000. */
  readonly maxDownMs?: number | false;
  /** How far back failures are counted, at most to the stage change, in milliseconds. Default 3,600,000. */
  readonly windowMs?: number;
  /** After how many readings that failed an alert says `blind`. Default 5. */
  readonly blindAfter?: number;
  /** What follows then. Default `'alert'`. */
  readonly whenBlind?: 'alert' | 'step-back';
}

export const defaultGuardrailRules: Required<GuardrailRules> = {
  enabled: true,
  to: 'rpc',
  maxFailedPercent: 1,
  minFailed: 3,
  maxRejectedPercent: 25,
  maxAlarms: 0,
  maxUnreadMs: 120_000,
  maxHeldMs: 300_000,
  maxDownMs: 60_000,
  windowMs: 3_600_000,
  blindAfter: 5,
  whenBlind: 'alert',
};

/** What is known of a switchover at one moment. */
export interface GuardrailFacts {
  /** Since the last stage change, in milliseconds, by the producer database's clock. */
  readonly inStageMs: number;
  /** Of the switchover, not of all that its consumer does; undefined: it could not be read. */
  readonly evidence: ConsumerEvidence | undefined;
  /** Age of the oldest published event that the consumer has not read; 0: it has read all; undefined: not known. */
  readonly unreadMs: number | undefined;
  /** For how long the consumer's group has had no member; 0: it has one; undefined: not known. */
  readonly downMs: number | undefined;
  /** How many readings in a row have failed. */
  readonly failedReadings: number;
}

/** A rule that was broken, with the numbers. */
export interface Breach {
  readonly rule: 'failed' | 'rejected' | 'alarms' | 'unread' | 'held' | 'down' | 'blind';
  readonly value: number;
  readonly limit: number;
  readonly why: string;
}

export interface GuardrailVerdict {
  readonly verdict: 'fine' | 'inconclusive' | 'breached';
  readonly breaches: readonly Breach[];
  /** What could not be judged, and why. */
  readonly unknown: readonly string[];
  /** So many readings have failed that somebody has to know. */
  readonly blind: boolean;
}

/** Whether a guardrail is breached. Pure. */
export function breached(facts: GuardrailFacts, rules: GuardrailRules = {}): GuardrailVerdict {
  const limits = { ...defaultGuardrailRules, ...rules };
  const blind = facts.failedReadings >= limits.blindAfter;
  const unknown: string[] = [];
  const breaches = [
    ...failed(facts, limits, unknown),
    ...rejected(facts, limits),
    ...alarms(facts, limits),
    ...lasting('unread', facts.unreadMs, limits.maxUnreadMs, facts, unknown),
    ...(facts.evidence === undefined
      ? []
      : lasting('held', facts.evidence.waitingMs, limits.maxHeldMs, facts, unknown)),
    ...lasting('down', facts.downMs, limits.maxDownMs, facts, unknown),
    ...(blind && limits.whenBlind === 'step-back'
      ? [
          {
            rule: 'blind' as const,
            value: facts.failedReadings,
            limit: limits.blindAfter,
            why: `the consumer could not be looked at ${facts.failedReadings} times in a row`,
          },
        ]
      : []),
  ];
  const verdict = breaches.length > 0 ? 'breached' : unknown.length > 0 ? 'inconclusive' : 'fine';
  return { verdict, breaches, unknown, blind };
}

type Limits = Required<GuardrailRules>;

/** How far back to ask for failures: never to before the stage change. */
export function guardrailWindowMs(inStageMs: number, rules: GuardrailRules = {}): number {
  return Math.max(0, Math.floor(Math.min(inStageMs, rules.windowMs ?? defaultGuardrailRules.windowMs)));
}

/** Evidence that reaches back to before the stage change counts what another stage did. */
function isOfThisStage({ evidence, inStageMs }: GuardrailFacts): boolean {
  return evidence !== undefined && evidence.withinMs <= inStageMs;
}

function failed(facts: GuardrailFacts, { maxFailedPercent, minFailed }: Limits, unknown: string[]): Breach[] {
  const { evidence } = facts;
  if (maxFailedPercent === false) return [];
  if (evidence === undefined) {
    unknown.push('the consumer’s evidence could not be read');
    return [];
  }
  if (!isOfThisStage(facts)) {
    unknown.push(`the evidence counts ${duration(evidence.withinMs)}, and the stage is younger`);
    return [];
  }
  const failures = evidence.parkedWithin + evidence.dead;
  const finished = eventOutcomes(evidence);
  const handled = finished + evidence.parkedWithin;
  if (handled === 0) unknown.push('no event was handled yet');
  const percent = handled === 0 ? 0 : Math.min(100, (100 * failures) / handled);
  if (failures < Math.max(1, minFailed) || percent <= maxFailedPercent) return [];
  if (finished >= mostOutcomes && failures < handled / 2) {
    // All failures are counted, and of the rest not all: the share is at most this.
    unknown.push(
      `more than ${mostOutcomes} events were handled, of which no share can be told; a shorter windowMs can`,
    );
    return [];
  }
  const why = `${failures} of ${handled} events are parked or dead since the stage was set (${percent.toFixed(1)} %, at most ${maxFailedPercent} %)`;
  return [{ rule: 'failed', value: percent, limit: maxFailedPercent, why }];
}

function eventOutcomes({ outcomes }: ConsumerEvidence, ...only: string[]): number {
  return outcomes
    .filter(({ path, outcome }) => path === 'event' && (only.length === 0 || only.includes(outcome)))
    .reduce((sum, each) => sum + each.count, 0);
}

function rejected(facts: GuardrailFacts, { maxRejectedPercent, minFailed }: Limits): Breach[] {
  const { evidence } = facts;
  if (maxRejectedPercent === false || evidence === undefined || !isOfThisStage(facts)) return [];
  const refused = eventOutcomes(evidence, 'rejected', 'skipped');
  const handled = eventOutcomes(evidence);
  if (refused < Math.max(1, minFailed) || 100 * lowerBound(refused, handled) <= maxRejectedPercent) return [];
  const value = (100 * refused) / handled;
  const why = `${refused} of ${handled} events were rejected or skipped since the stage was set (${value.toFixed(1)} %, at most ${maxRejectedPercent} %)`;
  return [{ rule: 'rejected', value, limit: maxRejectedPercent, why }];
}

function alarms(facts: GuardrailFacts, { maxAlarms }: Limits): Breach[] {
  if (maxAlarms === false || facts.evidence === undefined || !isOfThisStage(facts)) return [];
  const raised = facts.evidence.alarms.filter(({ kind }) => kind === 'sequence-hole' || kind === 'unknown-repeat');
  const count = raised.reduce((sum, each) => sum + each.within, 0);
  if (count <= maxAlarms) return [];
  const kinds = raised.filter(({ within }) => within > 0).map(({ kind }) => kind);
  return [
    {
      rule: 'alarms',
      value: count,
      limit: maxAlarms,
      why: `${count} new alarms: ${kinds.join(', ')} (at most ${maxAlarms})`,
    },
  ];
}

const words = {
  unread: { known: 'the oldest unread event is', unknown: 'how old the oldest unread event is' },
  held: { known: 'an event has been held for', unknown: 'how long events have been held' },
  down: { known: 'nobody has consumed for', unknown: 'whether somebody consumes' },
};

function lasting(
  rule: 'unread' | 'held' | 'down',
  ms: number | undefined,
  limit: number | false,
  { inStageMs }: GuardrailFacts,
  unknown: string[],
): Breach[] {
  if (limit === false) return [];
  if (ms === undefined) {
    unknown.push(`it is not known ${words[rule].unknown}`);
    return [];
  }
  // The time before the stage change is not this stage's.
  const value = Math.min(ms, inStageMs);
  if (value <= limit) return [];
  const age = rule === 'unread' ? `${duration(value)} old` : duration(value);
  return [{ rule, value, limit, why: `${words[rule].known} ${age} (at most ${duration(limit)})` }];
}

/** What is done about a verdict. Pure: in shadow no event has an effect, so there is nothing to go back for. */
export function guardrailAction(
  stage: Stage,
  { verdict }: GuardrailVerdict,
  rules: GuardrailRules = {},
):
  | { readonly kind: 'step-back'; readonly to: 'rpc' | 'shadow' }
  | { readonly kind: 'alert' }
  | { readonly kind: 'none' } {
  if (verdict !== 'breached') return { kind: 'none' };
  if (stage === 'ramp' || stage === 'event') return { kind: 'step-back', to: rules.to ?? defaultGuardrailRules.to };
  return stage === 'shadow' ? { kind: 'alert' } : { kind: 'none' };
}

/** Refuses rules that can't be meant. Throws TURNOUT_SWITCHOVER_INVALID with the path of the bad field. */
export function validateGuardrailRules(switchover: string, rules: GuardrailRules): void {
  for (const [name, value] of Object.entries(rules) as [string, unknown][]) {
    if (fits(name, value)) continue;
    const path = `guardrails.${name}`;
    throw new TurnoutError(
      'TURNOUT_SWITCHOVER_INVALID',
      `Switchover ${switchover} can't have ${path} ${JSON.stringify(value)}.`,
      { details: { switchover, path } },
    );
  }
}

function fits(name: string, value: unknown): boolean {
  switch (name) {
    case 'enabled':
      return typeof value === 'boolean';
    case 'to':
      return value === 'rpc' || value === 'shadow';
    case 'whenBlind':
      return value === 'alert' || value === 'step-back';
    default: {
      const mayBeOff = name.startsWith('max');
      if (mayBeOff && value === false && Object.hasOwn(defaultGuardrailRules, name)) return true;
      return (
        Object.hasOwn(defaultGuardrailRules, name) && typeof value === 'number' && value >= 0 && Number.isFinite(value)
      );
    }
  }
}
