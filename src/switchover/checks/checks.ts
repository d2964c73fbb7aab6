// What decides whether a switchover may be promoted: pure, over plain facts. check-switchover.ts collects them.
//
//   each check  ready │ not-ready: the numbers speak against it │ inconclusive: too little is known
//   all of them not-ready if one is; else inconclusive if one is; else ready
//
// Too little data is never ready, and worse facts never make a better verdict; test/unit/checks.test.ts holds both.
import type { Ordering } from '../../event/index.ts';
import { lowerBound, upperBound } from './bounds.ts';
import { defaultCheckRules } from './check-rules.ts';
import type { CheckRules } from './check-rules.ts';
import type { ConsumerEvidence } from './evidence.ts';
import { aDayMs, atMost, duration, not, passed, percent, unknown, yesOrNo } from './findings.ts';
import type { CheckVerdict, Finding } from './findings.ts';
import type { Stage } from '../stage.ts';

export interface Judgement {
  readonly verdict: CheckVerdict;
  readonly findings: readonly Finding[];
}

/** What is known of a switchover. */
export interface CheckFacts {
  readonly consumer: string;
  /** The stage that it is in. */
  readonly stage: Stage;
  readonly order: Ordering;
  readonly endpoint: 'wrapped' | 'bridged';
  /** Since the last stage change, in milliseconds. */
  readonly inStageMs: number;
  readonly sinceRecorded: boolean;
  /** Events of the last minutes whose publisher did not declare the switchover. */
  readonly undeclaredEvents: number;
  readonly owedCalls: number;
  readonly failingCalls: number;
  /** Whether its group has a member; undefined: no broker is configured. */
  readonly running: boolean | undefined;
  /** How many events each partition is behind; `idleMs`: since it last moved, if known. Undefined: nobody can tell. */
  readonly partitions:
    | readonly {
        readonly topic: string;
        readonly partition: number;
        readonly lag: number;
        readonly idleMs?: number | undefined;
      }[]
    | undefined;
  /** Age of the oldest published event that the consumer has not read, in milliseconds; undefined: not known. */
  readonly unreadMs?: number | undefined;
  /** Of the switchover, not of all that its consumer does. Undefined: nobody gave access to the consumer's database. */
  readonly evidence: ConsumerEvidence | undefined;
  /** Why there is none, if it was tried. */
  readonly evidenceError?: string | undefined;
}

/**
 * Whether a switchover may go to `target`, with the numbers behind it. Pure.
 *
 * @example
 * const { verdict, findings } = judge('event', facts, { minEffects: 1_000 });
 */
export function judge(target: Stage, facts: CheckFacts, rules: CheckRules = {}): Judgement {
  const limits = { ...defaultCheckRules, ...rules };
  const findings = checksFor(target, facts, limits);
  return { verdict: worst(findings), findings };
}

type Limits = Required<CheckRules>;

function checksFor(target: Stage, facts: CheckFacts, limits: Limits): Finding[] {
  const path = [isRunning(facts), isCaughtUp(facts, limits)];
  switch (target) {
    case 'shadow':
      return [sinceRecorded(facts), ...path];
    case 'ramp':
    case 'event':
      return [
        ...(target === 'ramp' && facts.endpoint === 'bridged' ? [noRamp] : []),
        sinceRecorded(facts),
        declaredEverywhere(facts),
        ...path,
        ...(facts.endpoint === 'bridged'
          ? [noShadow]
          : facts.stage === 'rpc' || facts.stage === 'shadow'
            ? [...deliveries(facts, limits), ...decisions(facts, limits)]
            : [effects(facts, limits), ...rejections(facts, limits)]),
        ...quietConsumer(facts, limits),
        failingCalls(facts, limits),
      ];
    case 'done':
      return [
        stableFor(facts, limits),
        sinceRecorded(facts),
        ...path,
        ...quietConsumer(facts, limits),
        nothingOwed(facts),
        noUnknownCaller(facts, limits),
      ];
    case 'rpc':
      // Two ways at once would break the order of a key: a bridge has no inbox in front of its endpoint.
      return facts.endpoint === 'bridged' && facts.order === 'key' ? drained(facts) : [];
  }
}

/** The worst verdict of all; nothing to check is ready. */
function worst(findings: readonly Finding[]): CheckVerdict {
  if (findings.some(({ verdict }) => verdict === 'not-ready')) return 'not-ready';
  return findings.some(({ verdict }) => verdict === 'inconclusive') ? 'inconclusive' : 'ready';
}

// ── The consumer and its path ────────────────────────────────────────────────────────────────────────────────────────

function sinceRecorded({ sinceRecorded: recorded }: CheckFacts): Finding {
  return yesOrNo('since-recorded', recorded, {
    yes: 'it is recorded where the consumer starts',
    no: 'it is not recorded where the consumer starts',
    remedy: 'Run `turnout switch <name> rpc` again: it records the start.',
  });
}

const noRamp: Finding = {
  check: 'endpoint',
  verdict: 'not-ready',
  value: 'bridged',
  limit: 'wrapped',
  why: 'a bridged endpoint has no inbox in front of it, so it can’t be reached in two ways at once',
  remedy: 'Go from rpc to event.',
};

/** What its bridge calls is what is called today: there is nothing new to be proved. */
const noShadow: Finding = {
  check: 'deliveries',
  verdict: 'ready',
  value: null,
  limit: null,
  why: 'the bridge calls the same endpoint as before; shadow has nothing to compare there',
  remedy: '',
};

function isRunning({ running, consumer }: CheckFacts): Finding {
  const remedy = `Start it: \`turnout consume ${consumer}\`.`;
  if (running === undefined)
    return unknown('consumer-running', 'no broker is configured here', 'Name the `broker` in the configuration.');
  return yesOrNo('consumer-running', running, {
    yes: 'the consumer’s group has a member',
    no: 'nobody consumes for this group',
    remedy,
  });
}

function isCaughtUp({ partitions, unreadMs }: CheckFacts, { maxLag, maxIdleMs }: Limits): Finding {
  const check = 'consumer-caught-up';
  if (partitions === undefined || partitions.length === 0)
    return unknown(
      check,
      'it is not known how far the consumer is',
      'Name the `broker` in the configuration, and start the consumer.',
    );
  const lag = partitions.reduce((sum, each) => sum + each.lag, 0);
  const behind = partitions.filter((each) => each.lag > 0);
  // By the relay's counts if they are known: a topic where little comes has stood still for long when something comes.
  const oldestMs = unreadMs ?? Math.max(0, ...behind.map((each) => each.idleMs ?? 0));
  if (behind.length > 0 && oldestMs > maxIdleMs) {
    const names = behind.map(({ topic, partition }) => `${topic}/${partition}`).join(', ');
    const why = `${lag} events behind (${names}), the oldest of them for ${duration(oldestMs)}`;
    return not(check, lag, maxLag, why, 'Look at the consumer’s log.');
  }
  return lag <= maxLag
    ? passed(check, lag, maxLag, `${lag} events behind`)
    : not(check, lag, maxLag, `${lag} events behind`, 'Wait until the consumer has caught up, or start more of it.');
}

function declaredEverywhere({ undeclaredEvents }: CheckFacts): Finding {
  return atMost('undeclared-publishers', undeclaredEvents, 0, {
    what: 'events of the last minutes were published by code that does not declare the switchover',
    remedy: 'Deploy the switchover to every publisher first.',
  });
}

const howToGiveAccess =
  'Name the consumer’s database in `consumerDatabases` (rights of turnout_reader are enough), or a function that fetches what the consumer serves in `evidence`.';

function noEvidence(check: string, { consumer, evidenceError }: CheckFacts): Finding {
  return unknown(
    check,
    evidenceError === undefined
      ? `there is no access to the database of ${consumer}`
      : `the evidence of ${consumer} can’t be read: ${evidenceError}`,
    howToGiveAccess,
  );
}

function quietConsumer(facts: CheckFacts, { maxHeldMs }: Limits): Finding[] {
  const { evidence } = facts;
  if (evidence === undefined) return [noEvidence('parked', facts)];
  const unseen = evidence.alarms.reduce((sum, each) => sum + each.count, 0);
  return [
    atMost('parked', evidence.parked, 0, {
      what: 'events are parked',
      remedy:
        'Correct the handler; then, in the consumer’s database, `select turnout.retry_parked(…)`, or `turnout.skip_parked(…)` (docs/consumer.md).',
    }),
    evidence.waitingMs > maxHeldMs
      ? not(
          'held',
          evidence.waitingMs,
          maxHeldMs,
          `an event has been held for ${duration(evidence.waitingMs)}, early or behind another`,
          'Find what comes before it: `turnout switch explain <event id>`, turnout.held in the consumer’s database.',
        )
      : passed('held', evidence.waitingMs, maxHeldMs, `no event is held for more than ${duration(maxHeldMs)}`),
    atMost('dead', evidence.dead, 0, {
      what: `events were given up (dead) in ${duration(evidence.withinMs)}`,
      remedy: 'Find out why from turnout.inbox (outcome dead), and wait until they are older than the stage.',
    }),
    atMost('alarms', unseen, 0, {
      what: `alarms that nobody has looked at${unseen === 0 ? '' : ` (${evidence.alarms.map(({ kind }) => kind).join(', ')})`}`,
      remedy:
        'Look at turnout.alarm in the consumer’s database, then `select turnout.see_alarms(<consumer>, <newest id>, <reason>)`.',
    }),
  ];
}

// ── Shadow ───────────────────────────────────────────────────────────────────────────────────────────────────────────

function deliveries(facts: CheckFacts, { minDeliveries, maxDelayMs }: Limits): Finding[] {
  const { evidence, order } = facts;
  if (evidence === undefined) return [noEvidence('deliveries', facts)];
  const shadow = 'Stay in shadow until enough events have come by both ways: `turnout shadow report <name>`.';
  const seen = evidence.shadow?.deliveries;
  if (seen === undefined || facts.stage === 'rpc')
    return [unknown('deliveries', 'no deliveries were compared: the switchover was not in shadow', shadow)];
  const { arrived, missing, undecodable, outOfOrder, delayMs } = seen;
  return [
    arrived >= minDeliveries
      ? passed('deliveries', arrived, minDeliveries, `${arrived} events came beside their calls`)
      : unknown('deliveries', `only ${arrived} events came beside their calls`, shadow, arrived, minDeliveries),
    atMost('deliveries-missing', missing, 0, {
      what: 'events had their call and never came as a copy',
      remedy: 'Find them with `turnout shadow report <name>`: does the consumer read the topic, and the relay publish?',
    }),
    atMost('deliveries-undecodable', undecodable, 0, {
      what: 'copies could not be decoded by the consumer',
      remedy: 'Bring the consumer’s event definitions up to date.',
    }),
    ...(order === 'key'
      ? [
          atMost('deliveries-out-of-order', outOfOrder, 0, {
            what: 'copies came out of the order of their key',
            remedy: 'Look whether another producer writes to the topic, or its partition count was changed.',
          }),
        ]
      : []),
    delayMs.p99 === null
      ? unknown('delivery-delay', 'no delay was measured', shadow, null, maxDelayMs)
      : atMost('delivery-delay', delayMs.p99, maxDelayMs, {
          what: 'ms or less took 99 % of the copies',
          remedy: 'Look at relay and consumer (`turnout status`), or raise `checks.maxDelayMs`.',
        }),
  ];
}

function decisions(facts: CheckFacts, limits: Limits): Finding[] {
  const shadow = facts.evidence?.shadow;
  if (facts.evidence === undefined || facts.stage === 'rpc') return [];
  const { compared: of = 0, mismatched = 0 } = shadow?.decisions ?? {};
  const isRequired = limits.decisions === 'required';
  // Those of the rules, and those that the consumer's handlers declare.
  const declared = shadow?.variants.filter(({ expected }) => expected).map(({ variant }) => variant) ?? [];
  const variants = [...new Set([...limits.variants, ...declared])];
  if (of === 0 && !isRequired && variants.length === 0) {
    return [passed('decisions', null, null, 'not compared: only that the copies arrive is proved, not what they do')];
  }
  const covered = variants.map((variant) => {
    const compared = shadow?.variants.find((each) => each.variant === variant)?.compared ?? 0;
    const check = `variant ${variant}`;
    return compared > 0
      ? passed(check, compared, 1, `${compared} compared`)
      : unknown(check, 'never compared', 'Wait for such an event in shadow, or cause one.', 0, 1);
  });
  return of === 0 && !isRequired ? covered : [mismatchRate(mismatched, of, limits), ...covered];
}

/** Ready if the rate is surely small enough, not ready if it surely is not, and in between more must be seen. */
function mismatchRate(mismatched: number, of: number, { maxMismatchPercent }: Limits): Finding {
  const [low, high] = [100 * lowerBound(mismatched, of), 100 * upperBound(mismatched, of)];
  const value = `${mismatched} of ${of}`;
  const limit = `${maxMismatchPercent} %`;
  const why = `${value} decisions differ: at most ${percent(high)} (95 % upper bound, Clopper–Pearson)`;
  const remedy = 'Look at `turnout shadow report <name>`; correct the handler, or waive what may differ.';
  if (high <= maxMismatchPercent) return passed('mismatches', value, limit, why);
  if (low > maxMismatchPercent) return not('mismatches', value, limit, why, remedy);
  return unknown('mismatches', why, mismatched === 0 ? 'Stay in shadow: too few were compared.' : remedy, value, limit);
}

// ── Events that had their effect; calls; leaving ─────────────────────────────────────────────────────────────────────

function effects(facts: CheckFacts, { minEffects }: Limits): Finding {
  const { evidence } = facts;
  if (evidence === undefined) return noEvidence('effects', facts);
  const applied = outcomes(evidence, 'applied');
  const why = `${applied} events had their effect in ${duration(evidence.withinMs)}`;
  return applied >= minEffects
    ? passed('effects', applied, minEffects, why)
    : unknown('effects', why, 'Wait for more events in this stage.', applied, minEffects);
}

function rejections({ evidence }: CheckFacts, { maxRejectedPercent }: Limits): Finding[] {
  if (evidence === undefined) return [];
  const refused = outcomes(evidence, 'rejected') + outcomes(evidence, 'skipped');
  const all = evidence.outcomes.filter(({ path }) => path === 'event').reduce((sum, each) => sum + each.count, 0);
  const value = `${refused} of ${all}`;
  const why = `${value} events were rejected or skipped`;
  const remedy =
    'Look at turnout.inbox (reason), or raise `checks.maxRejectedPercent` if so many are refused by nature.';
  return [
    100 * lowerBound(refused, all) > maxRejectedPercent
      ? not('rejected', value, `${maxRejectedPercent} %`, why, remedy)
      : passed('rejected', value, `${maxRejectedPercent} %`, why),
  ];
}

function outcomes(evidence: ConsumerEvidence, outcome: string): number {
  return evidence.outcomes
    .filter((each) => each.path === 'event' && each.outcome === outcome)
    .reduce((sum, each) => sum + each.count, 0);
}

function failingCalls({ failingCalls: failing }: CheckFacts, { maxFailingCalls }: Limits): Finding {
  return atMost('failing-calls', failing, maxFailingCalls, {
    what: 'calls are failing',
    remedy: 'See their last error with `turnout switch status`, and bring the endpoint up.',
  });
}

function nothingOwed({ owedCalls }: CheckFacts): Finding {
  return atMost('owed-calls', owedCalls, 0, {
    what: 'calls are owed still',
    remedy: 'Let `turnout run` make them; their last error is in `turnout switch status`.',
  });
}

function stableFor({ stage, inStageMs }: CheckFacts, { quietDays }: Limits): Finding {
  if (stage !== 'event')
    return not('stage', stage, 'event', `the stage is ${stage}`, 'Go to event first, and stay there.');
  const days = inStageMs / aDayMs;
  const why = `in stage event for ${duration(inStageMs)}`;
  return days >= quietDays
    ? passed('stage', Math.floor(days), quietDays, why)
    : not('stage', Math.floor(days * 10) / 10, quietDays, why, `Wait until it has been so for ${quietDays} days.`);
}

function noUnknownCaller(facts: CheckFacts, { quietDays }: Limits): Finding {
  const check = 'unknown-callers';
  const { evidence } = facts;
  if (evidence === undefined) return noEvidence(check, facts);
  const callers = evidence.callers.filter(({ ageMs }) => ageMs < quietDays * aDayMs);
  if (callers.length > 0) {
    const who = callers.slice(0, 3).map((each) => each.service || each.address || 'somebody');
    return not(
      check,
      callers.length,
      0,
      `called without Turnout in the last ${quietDays} days by ${[...new Set(who)].join(', ')}`,
      'Move these callers, or tell their teams: `turnout switch cleanup <name>` lists them.',
    );
  }
  if (facts.endpoint === 'bridged')
    return unknown(
      check,
      'nobody sees who calls a bridged endpoint',
      'Read its access log, then force it, and say so.',
    );
  if (evidence.endpoints.length === 0)
    return unknown(
      check,
      'no wrapped endpoint of the consumer has told of a call yet',
      'Deploy the consumer with its endpoint wrapped, and wait; if the endpoint is gone already, force it and say so.',
    );
  // Who called before an endpoint was watched, nobody knows.
  const newest = Math.max(...evidence.endpoints.map(({ firstAt }) => Date.parse(firstAt)));
  const watchedDays = Math.max(0, Date.parse(evidence.at) - newest) / aDayMs;
  if (watchedDays < quietDays)
    return unknown(
      check,
      `an endpoint of the consumer is watched for ${Math.floor(watchedDays * 10) / 10} days only`,
      `Wait until all of its endpoints have been watched for ${quietDays} days.`,
    );
  return passed(check, 0, 0, `no call without Turnout in the last ${quietDays} days`);
}

function drained(facts: CheckFacts): Finding[] {
  const { partitions, evidence } = facts;
  const check = 'drained';
  const remedy = 'Let the bridge finish what is routed to it, then go back.';
  if (partitions === undefined) return [unknown(check, 'it is not known how far the bridge is', howToGiveAccess)];
  if (evidence === undefined) return [noEvidence(check, facts)];
  const left = partitions.reduce((sum, each) => sum + each.lag, 0) + evidence.heldCount;
  return [atMost(check, left, 0, { what: 'events are still to be delivered by the bridge', remedy })];
}
