import type { Queryable } from '../../database/index.ts';
import { judge } from './checks.ts';
import type { CheckRules } from './check-rules.ts';
import type { CheckFacts, Judgement } from './checks.ts';
import { askForEvidence, partitionsBehind, scopeOf, switchoverState } from './facts.ts';
import type { ConsumerView, SwitchoverState } from './facts.ts';
import { recordCheck } from '../stages/check-store.ts';
import { switchoverStatus } from '../stages/status-store.ts';
import type { Stage } from '../stage.ts';
import { unreadMs } from './unread.ts';

export interface CheckOptions extends ConsumerView {
  readonly source: string;
  /** The database with the outbox. */
  readonly database: Queryable;
  /** The switchover. */
  readonly name: string;
  /** The stage it is to go to. */
  readonly target: Stage;
  /** Of the definition; default: the default ones. */
  readonly rules?: CheckRules | undefined;
  /** Whether the verdict is kept, so that the stage may be set by it for ten minutes. Default true. */
  readonly record?: boolean;
}

/** What a check said, and of what. */
export interface SwitchoverCheck extends Judgement {
  readonly switchover: string;
  readonly consumer: string;
  readonly stage: Stage;
  readonly epoch: number;
  readonly target: Stage;
}

/**
 * Looks whether a switchover may go to a stage: collects what producer, broker and consumer know, judges it, and records the
 * verdict, by which `setStage` goes. Throws TURNOUT_SWITCHOVER_UNKNOWN; broker and consumer that can't be asked make the verdict inconclusive.
 *
 * @example
 * const { verdict, findings } = await checkSwitchover({
 *   source: 'orders',
 *   database: pgDatabase(pool),
 *   name: 'order-confirmation',
 *   target: 'event',
 *   broker: kafkaJs(kafka).source(),
 *   evidence: (question) => consumerEvidence(pgDatabase(mailPool), 'email', question),
 * });
 */
export async function checkSwitchover(options: CheckOptions): Promise<SwitchoverCheck> {
  const { source, database, name, target, rules, record = true } = options;
  const state = await switchoverState(database, source, name);
  const facts = await collectFacts(options, state);
  const { verdict, findings } = judge(target, facts, rules);
  if (record) await recordCheck(database, source, name, { stage: target, verdict, findings, epoch: state.epoch });
  return {
    switchover: name,
    consumer: state.consumer,
    stage: state.stage,
    epoch: state.epoch,
    target,
    verdict,
    findings,
  };
}

const aDayMs = 86_400_000;

async function collectFacts(options: CheckOptions, state: SwitchoverState): Promise<CheckFacts> {
  const { source, database, name, target, rules, broker } = options;
  const { consumer, topic, stage, inStageMs } = state;
  // What was given up is asked for since the stage was set; for `done`, for all of the quiet time.
  const stageMs = target === 'done' ? Math.max(inStageMs, (rules?.quietDays ?? 7) * aDayMs) : inStageMs;
  // The question is on its way for a moment, in which the window moves on. The first calls of shadow must not fall out of it, or
  // their copies would come without them; of the stage before there are none.
  const withinMs = stage === 'shadow' ? stageMs + 1_000 : stageMs;
  const [[status], asked, running] = await Promise.all([
    switchoverStatus(database, source, name),
    askForEvidence(options, { ...scopeOf(state), withinMs, shadow: stage === 'shadow' }),
    broker?.running(consumer).catch(() => undefined),
  ]);
  const partitions =
    broker === undefined
      ? undefined
      : await partitionsBehind(broker, asked.evidence, consumer, topic).catch(() => undefined);
  const { evidence } = asked;
  return {
    consumer,
    stage,
    order: state.order,
    endpoint: state.endpoint,
    inStageMs,
    sinceRecorded: state.sinceRecorded,
    undeclaredEvents: status?.undeclaredEvents ?? 0,
    owedCalls: status?.owedCalls ?? 0,
    failingCalls: status?.failedCalls ?? 0,
    running,
    partitions,
    unreadMs:
      evidence === undefined
        ? undefined
        : await unreadMs(database, source, topic, evidence.consumed, { withinMs: inStageMs }),
    evidence,
    evidenceError: asked.error,
  };
}
