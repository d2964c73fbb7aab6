// Guardrails as a service, part of `turnout run`: every few seconds, for each switchover in shadow, ramp or event,
//
//   evidence ─▶ breached() ─▶ step back, recorded as automatic with the numbers ─▶ alert
//
// Several processes may watch: each reads, and the change is made only if, under the lock of its row, the epoch is still the one
// that was judged. So there is one step back, and never one of a stage that an operator has set since.
// Alerts are sent beside the loop; nothing waits for them.
import type { Database } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { retryDelayMs, service, silentLogger, sleep } from '../../lifecycle/index.ts';
import type { Logger, RetryPolicy, Service } from '../../lifecycle/index.ts';
import type { Alert, OnAlert } from './alerts.ts';
import type { SwitchoverDefinition } from '../define-switchover.ts';
import { askForEvidence, scopeOf, switchoverStates } from './facts.ts';
import type { ConsumerView, SwitchoverState } from './facts.ts';
import { breached, guardrailAction, guardrailWindowMs } from './guardrails.ts';
import type { GuardrailFacts, GuardrailRules, GuardrailVerdict } from './guardrails.ts';
import { stepBack } from '../stages/stage-store.ts';
import { unreadMs } from './unread.ts';

export interface GuardrailOptions<Tx = unknown> {
  readonly source: string;
  /** The database with the outbox. */
  readonly database: Database<Tx>;
  /** Watched by their `guardrails`; switchovers that are not among them are left alone. */
  readonly switchovers: readonly Pick<SwitchoverDefinition, 'name' | 'guardrails'>[];
  /** Where to ask about a consumer. */
  readonly view: (consumer: string) => ConsumerView;
  readonly onAlert?: OnAlert | undefined;
  readonly logger?: Logger;
  /** How often to look, in milliseconds. Default 5,000. */
  readonly everyMs?: number;
  /** How long to wait for a consumer's evidence, in milliseconds. Default 10,000. */
  readonly evidenceTimeoutMs?: number;
}

export interface Guardrails extends Service {
  /** What it saw last of each switchover, by name. */
  seen(): ReadonlyMap<string, GuardrailVerdict>;
}

const databaseRetry: RetryPolicy = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 500, maxDelayMs: 10_000 };

/**
 * Watches switchovers, and steps back by itself when a guardrail is breached.
 *
 * @example
 * const watching = guardrails({
 *   source: 'orders',
 *   database,
 *   switchovers: [confirmation],
 *   view: () => ({ broker: broker.source(), evidence: (question) => consumerEvidence(mailDatabase, 'email', question) }),
 *   onAlert: webhook('https://hooks.example.org/turnout'),
 * });
 * await watching.start();
 */
export function guardrails<Tx>(options: GuardrailOptions<Tx>): Guardrails {
  const { source, database, switchovers, everyMs = 5_000, logger = silentLogger } = options;
  const watched = new Map(switchovers.map(({ name, guardrails: rules = {} }) => [name, rules]));
  const memories = new Map<string, Memory>();
  const seen = new Map<string, GuardrailVerdict>();

  async function look(state: SwitchoverState, signal: AbortSignal): Promise<void> {
    const rules = watched.get(state.name);
    if (rules === undefined || rules.enabled === false) return;
    const verdict = await watch(options, state, rules, memoryOf(memories, state), logger, signal);
    if (verdict === undefined) seen.delete(state.name);
    else seen.set(state.name, verdict);
  }

  const run = service('guardrails', async (signal, ready) => {
    // Fails at once, and says so, if the database can't be reached or was not migrated.
    await database.query('select from turnout.switchover_check limit 0');
    ready();
    for (let failures = 0; !signal.aborted;) {
      try {
        const states = await switchoverStates(database, source);
        // All of them are waited for: one that fails must not be looked at twice at a time.
        const looks = await Promise.allSettled(states.map((state) => look(state, signal)));
        const failure = looks.find((each) => each.status === 'rejected');
        if (failure !== undefined) throw failure.reason;
        failures = 0;
        await sleep(everyMs, signal);
      } catch (error) {
        const delayMs = retryDelayMs(databaseRetry, ++failures, Math.random());
        logger.warn('The guardrails can’t read the switchovers.', { source, error, againInMs: delayMs });
        await sleep(delayMs, signal);
      }
    }
  });
  return { ...run, seen: () => seen };
}

/** What is remembered from one look to the next; a stage change forgets all of it. */
interface Memory {
  readonly epoch: number;
  failedReadings: number;
  /** When the consumer was first seen without a member, by this process's steady clock. */
  downSince: number | undefined;
  toldOfBreach: boolean;
  toldOfBlindness: boolean;
}

function memoryOf(memories: Map<string, Memory>, { name, epoch }: SwitchoverState): Memory {
  const known = memories.get(name);
  if (known?.epoch === epoch) return known;
  const fresh: Memory = {
    epoch,
    failedReadings: 0,
    downSince: undefined,
    toldOfBreach: false,
    toldOfBlindness: false,
  };
  memories.set(name, fresh);
  return fresh;
}

/** One look at one switchover. Gives what it saw; undefined: there is nothing to watch in this stage. */
async function watch<Tx>(
  options: GuardrailOptions<Tx>,
  state: SwitchoverState,
  rules: GuardrailRules,
  memory: Memory,
  logger: Logger,
  signal: AbortSignal,
): Promise<GuardrailVerdict | undefined> {
  if (state.stage === 'rpc' || state.stage === 'done') return undefined;
  const facts = await read(options, state, rules, memory);
  if (signal.aborted) return undefined;
  const verdict = breached(facts, rules);
  const tell = (kind: Alert['kind'], why: string, more: Partial<Alert> = {}): void =>
    send(options, logger, {
      id: `${options.source}/${state.name}/${state.epoch}/${kind}`,
      kind,
      source: options.source,
      switchover: state.name,
      consumer: state.consumer,
      stage: state.stage,
      epoch: state.epoch,
      at: new Date().toISOString(),
      why,
      breaches: verdict.breaches,
      ...more,
    });

  if (verdict.blind !== memory.toldOfBlindness) {
    memory.toldOfBlindness = verdict.blind;
    tell(
      verdict.blind ? 'blind' : 'sighted',
      verdict.blind ? verdict.unknown.join('; ') : 'the consumer can be seen again',
    );
  }
  const action = guardrailAction(state.stage, verdict, rules);
  if (action.kind === 'none') return verdict;
  const why = verdict.breaches.map((each) => each.why).join('; ');
  if (action.kind === 'step-back') {
    try {
      // If not: somebody else has changed the stage meanwhile.
      if (await stepBackOnce(options, state, action.to, why, verdict)) tell('stepped-back', why, { to: action.to });
      return verdict;
    } catch (error) {
      logger.error('A guardrail was breached, and the way back was refused.', { switchover: state.name, error });
      if (!memory.toldOfBreach)
        tell('breached', `${why}; the way back was refused: ${error instanceof Error ? error.message : String(error)}`);
      memory.toldOfBreach = true;
      return verdict;
    }
  }
  if (!memory.toldOfBreach) tell('breached', why);
  memory.toldOfBreach = true;
  return verdict;
}

async function read<Tx>(
  { source, database, view, evidenceTimeoutMs }: GuardrailOptions<Tx>,
  state: SwitchoverState,
  rules: GuardrailRules,
  memory: Memory,
): Promise<GuardrailFacts> {
  const { consumer, topic, inStageMs } = state;
  const asked = view(consumer);
  const [{ evidence }, running] = await Promise.all([
    askForEvidence(asked, { ...scopeOf(state), withinMs: guardrailWindowMs(inStageMs, rules) }, evidenceTimeoutMs),
    asked.broker?.running(consumer).catch(() => undefined),
  ]);
  memory.failedReadings = evidence === undefined ? memory.failedReadings + 1 : 0;
  if (running === true) memory.downSince = undefined;
  else if (running === false) memory.downSince ??= performance.now();
  return {
    inStageMs,
    evidence,
    unreadMs:
      evidence === undefined
        ? undefined
        : await unreadMs(database, source, topic, evidence.consumed, { withinMs: inStageMs }),
    downMs:
      running === undefined ? undefined : memory.downSince === undefined ? 0 : performance.now() - memory.downSince,
    failedReadings: memory.failedReadings,
  };
}

/** Steps back if the epoch is still the one that was judged; gives whether it was. */
async function stepBackOnce<Tx>(
  { source, database }: GuardrailOptions<Tx>,
  { name, epoch, stage }: SwitchoverState,
  to: 'rpc' | 'shadow',
  why: string,
  { breaches, unknown }: GuardrailVerdict,
): Promise<boolean> {
  try {
    await stepBack(database, source, name, to, {
      reason: `guardrail: ${why}`,
      detail: { guardrail: { from: stage, breaches, unknown } },
      expectedEpoch: epoch,
    });
    return true;
  } catch (error) {
    if (error instanceof TurnoutError && error.code === 'TURNOUT_STAGE_CHANGED') return false;
    throw error;
  }
}

/** Beside the loop: what an alert does, and how long it takes, is none of the guardrail's. */
function send<Tx>({ onAlert }: GuardrailOptions<Tx>, logger: Logger, alert: Alert): void {
  const fields = { kind: alert.kind, switchover: alert.switchover, stage: alert.stage, to: alert.to, why: alert.why };
  if (alert.kind === 'sighted') logger.info('The guardrails can see a consumer again.', fields);
  else
    logger.warn(
      alert.kind === 'stepped-back'
        ? 'A switchover was stepped back. What went as events and had no effect yet: `turnout switch <name> rpc --redrive`.'
        : 'A guardrail has something to say.',
      fields,
    );
  if (onAlert === undefined) return;
  void Promise.resolve()
    .then(() => onAlert(alert))
    .catch((error: unknown) => logger.error('An alert failed.', { ...fields, error }));
}
