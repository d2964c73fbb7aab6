import type { Command } from 'commander';
import type { ConsumerDefinition } from '../../consumer/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { relayStatus } from '../../relay/index.ts';
import type { RelayStatus } from '../../relay/index.ts';
import {
  askForEvidence,
  breached,
  duration,
  guardrailWindowMs,
  latestCheck,
  scopeOf,
  switchoverStates,
  switchoverStatus,
  unreadMs,
} from '../../switchover/index.ts';
import type { ConsumerEvidence, SwitchoverState } from '../../switchover/index.ts';
import { consumersOf, consumerView } from '../consumer-view.ts';
import { guaranteeOf } from '../guarantee.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { stageText } from '../output.ts';
import type { Report } from '../output.ts';

export function addStatusCommands(program: Command, tools: CommandTools): void {
  program
    .command('status')
    .description(
      'what is promised for each switchover as it is configured now, its newest check and its guardrails; how relay and consumers stand',
    )
    .action((_options: unknown, command: Command) => tools.withConfig(command, (config) => showStatus(config)));
}

/** What is promised for each switchover, and how relay and consumers of this configuration stand. */
export async function showStatus(loaded: TurnoutConfig): Promise<Report> {
  const consumers = consumersOf(loaded);
  if (loaded.source === undefined && consumers.length === 0)
    throw new TurnoutError(
      'TURNOUT_CONFIG_INVALID',
      '`turnout status` needs `source` or `consumers` in the configuration.',
      { details: { path: 'source', command: 'status' } },
    );
  const [producing, consuming] = await Promise.all([
    loaded.source === undefined ? undefined : producerPart(loaded),
    Promise.all(consumers.map((consumer) => consumerPart(loaded, consumer))),
  ]);
  return {
    data: { ...producing?.data, consumers: consuming.map(({ data }) => data) },
    text: [...(producing === undefined ? [] : [producing.text]), ...consuming.map(({ text }) => text)].join('\n\n'),
  };
}

// ── A service that publishes ─────────────────────────────────────────────────────────────────────────────────────────

async function producerPart(loaded: TurnoutConfig): Promise<Report> {
  const { source, database } = need(loaded, 'status', 'source', 'database');
  const [switchovers, states, relay] = await Promise.all([
    switchoverStatus(database, source),
    switchoverStates(database, source),
    relayStatus(database),
  ]);
  const described = await Promise.all(
    switchovers.map(async (each) => {
      const state = states.find(({ name }) => name === each.name);
      const [check, seen] = await Promise.all([
        latestCheck(database, source, each.name),
        state === undefined ? undefined : look(loaded, state),
      ]);
      const guarantees = guaranteeOf(
        each,
        consumersOf(loaded).find((consumer) => consumer.name === each.consumer),
        { proxied: isProxied(loaded, each.name), wrappedSeen: seen?.wrappedSeen },
      );
      return { ...each, guarantees, check: check ?? null, guardrails: seen?.guardrails ?? null };
    }),
  );
  const text = [
    `source ${source}: ${relayText(relay)}`,
    ...described.map((each) =>
      [
        `\n${each.name}: ${each.consumer}, stage ${stageText(each)}, ${each.owedCalls} calls owed`,
        ...each.guarantees.map((line) => `  - ${line}`),
        `  newest check: ${each.check === null ? 'none' : `${each.check.verdict} for ${each.check.stage}, ${each.check.at.toISOString()}${each.check.current ? '' : ' (of an earlier stage)'}`}`,
        ...(each.guardrails === null ? [] : [`  guardrails: ${each.guardrails.text}`]),
      ].join('\n'),
    ),
    ...(described.length === 0 ? ['\nNo switchovers.'] : []),
  ].join('\n');
  return { data: { source, relay, switchovers: described }, text };
}

function isProxied({ proxies = [] }: TurnoutConfig, name: string): boolean {
  return proxies.some(({ routes }) => routes.some(({ switchover }) => switchover?.name === name));
}

/** How a relay stands, in words. An idle one has no ticks to show, and is alive. */
export function relayText({
  relays,
  leading,
  lastRelay,
  secondsSinceTick,
  secondsSinceSignOfLife,
  unpublished,
}: RelayStatus): string {
  const tick =
    lastRelay === null
      ? 'nothing was published yet'
      : `last tick ${duration(secondsSinceTick! * 1_000)} ago by ${lastRelay}`;
  const work = unpublished ? 'there is something to publish' : 'nothing is to be published';
  if (!leading) return `NO RELAY leads${relays === 0 ? '' : `, ${relays} stand by`}; ${work}; ${tick}`;
  const life = secondsSinceSignOfLife === null ? '' : ` (sign of life ${secondsSinceSignOfLife} s ago)`;
  return `a relay leads${life}, ${Math.max(0, relays - 1)} stand by; ${work}; ${tick}`;
}

interface Look {
  readonly wrappedSeen: boolean | undefined;
  readonly guardrails: { readonly state: 'off' | 'idle' | 'seeing' | 'blind'; readonly text: string };
}

/** What the guardrails of a process with this configuration would see now. */
async function look(loaded: TurnoutConfig, state: SwitchoverState): Promise<Look> {
  const { name, consumer, stage, topic, inStageMs } = state;
  const { source, database } = need(loaded, 'status', 'source', 'database');
  const rules = loaded.switchovers?.find((each) => each.name === name)?.guardrails ?? {};
  const view = consumerView(loaded, consumer);
  const [{ evidence, error }, running] = await Promise.all([
    askForEvidence(view, { ...scopeOf(state), withinMs: guardrailWindowMs(inStageMs, rules) }, 5_000),
    view.broker?.running(consumer).catch(() => undefined),
  ]);
  const wrappedSeen = evidence?.endpoints.some(({ keyedAt }) => keyedAt !== undefined);
  if (loaded.switchovers?.some((each) => each.name === name) !== true)
    return { wrappedSeen, guardrails: { state: 'off', text: 'not of this configuration' } };
  if (rules.enabled === false) return { wrappedSeen, guardrails: { state: 'off', text: 'switched off' } };
  if (evidence === undefined)
    return {
      wrappedSeen,
      guardrails: {
        state: 'blind',
        text: `BLIND: ${error ?? 'no access to the consumer’s database (`consumerDatabases` or `evidence`)'}`,
      },
    };
  if (stage === 'rpc' || stage === 'done')
    return { wrappedSeen, guardrails: { state: 'idle', text: `seeing; nothing to watch in stage ${stage}` } };
  const verdict = breached(
    {
      inStageMs,
      evidence,
      unreadMs: await unreadMs(database, source, topic, evidence.consumed, { withinMs: inStageMs }),
      // For how long, only who watches knows.
      downMs: running === undefined ? undefined : 0,
      failedReadings: 0,
    },
    rules,
  );
  const why = [
    ...verdict.breaches.map((each) => each.why),
    ...(running === false ? ['nobody consumes now'] : []),
    ...verdict.unknown,
  ].join('; ');
  return {
    wrappedSeen,
    guardrails: { state: 'seeing', text: `seeing, ${verdict.verdict}${why === '' ? '' : `: ${why}`}` },
  };
}

// ── A service that consumes ──────────────────────────────────────────────────────────────────────────────────────────

async function consumerPart(
  loaded: TurnoutConfig,
  { name, mode, inSwitchover, handlers }: ConsumerDefinition,
): Promise<Report> {
  const view = consumerView(loaded, name);
  const [{ evidence, error }, running] = await Promise.all([
    askForEvidence(view, {}),
    view.broker?.running(name).catch(() => undefined),
  ]);
  const promise =
    mode === 'detached'
      ? 'NOT promised: once in effect; the handlers are detached: at least once, uncertain ones are reported'
      : 'each effect in its database happens once; NOT promised: effects elsewhere';
  const data = {
    consumer: name,
    running: running ?? null,
    mode,
    eventTypes: handlers.map(({ event }) => event.name),
    inSwitchover: inSwitchover.map((event) => event.name),
    evidence: evidence === undefined ? null : { ...evidence, held: undefined },
    error: error ?? null,
  };
  const text = [
    `consumer ${name}: ${running === undefined ? 'whether it runs is not known' : running ? 'runs' : 'NOBODY consumes'}`,
    `  - ${promise}`,
    `  ${evidence === undefined ? `its database can't be read: ${error}` : evidenceText(evidence)}`,
  ].join('\n');
  return { data, text };
}

function evidenceText({ heldCount, parked, outcomes, alarms, withinMs }: ConsumerEvidence): string {
  const effects = outcomes.map(({ path, outcome, count }) => `${count} ${outcome} by ${path}`).join(', ');
  const unseen = alarms.map(({ kind, count }) => `${count} ${kind}`).join(', ');
  return [
    `in ${duration(withinMs)}: ${effects === '' ? 'no effects' : effects}`,
    `${heldCount} held, of these ${parked} parked`,
    unseen === '' ? 'no alarms' : `ALARMS: ${unseen}`,
  ].join('; ');
}
