// Why one event went the way it went, and what became of it: from rows alone, nothing is computed again but the bucket of its key.
import type { Queryable } from '../../database/index.ts';
import { effectKeyOf, parseRoutes } from '../../event/index.ts';
import type { Route } from '../../event/index.ts';
import { rampBucket } from '../stage.ts';
import type { Stage } from '../stage.ts';

/** An event as the outbox has it. */
export interface ExplainedEvent {
  readonly id: string;
  readonly seq: string;
  readonly source: string;
  readonly type: string;
  readonly version: number;
  readonly topic: string;
  readonly key: string | null;
  readonly occurredAt: string;
  readonly routes: string | null;
}

/** What one consumer was given, and what became of it. */
export interface ExplainedRoute {
  readonly consumer: string;
  /** Undefined: it has gone from the configuration of the database, or the stamp is another source's. */
  readonly switchover: string | undefined;
  /** Undefined: the event carries none for this consumer. */
  readonly route: Route | undefined;
  readonly shadow: boolean;
  readonly epoch: number | undefined;
  readonly number: string | undefined;
  /** The stage change under which it was stamped. */
  readonly change:
    | {
        readonly stage: Stage;
        readonly percent: number;
        readonly at: string;
        readonly actor: string;
        readonly automatic: boolean;
        readonly reason: string;
      }
    | undefined;
  /** 0 … 99.99: the key's place among all keys; a ramp takes those below its percentage. */
  readonly bucketPercent: number | undefined;
  readonly owed:
    | { readonly attempts: number; readonly lastError: string | null; readonly dueAt: string | null }
    | undefined;
  /** Undefined: nobody gave access to the consumer's database. */
  readonly atConsumer: AtConsumer | undefined;
}

/** What the consumer's database has of an effect. */
export interface AtConsumer {
  readonly inbox:
    | {
        readonly outcome: string;
        readonly path: Route;
        readonly attempts: number;
        readonly reason: string | null;
        readonly finishedAt: string;
      }
    | undefined;
  readonly held:
    | {
        readonly reason: 'early' | 'parked' | 'behind';
        readonly error: string | null;
        readonly attempts: number;
        readonly heldAt: string;
      }
    | undefined;
  /** How far the key is, and why it stands still if it does. */
  readonly gate: { readonly number: string; readonly halted: string | null } | undefined;
  readonly alarms: readonly { readonly kind: string; readonly at: string }[];
}

export interface Explanation {
  readonly event: ExplainedEvent;
  readonly consumers: readonly ExplainedRoute[];
}

/**
 * Reads why an event went its way and what became of it; undefined if the outbox does not hold it (any more). `databaseOf`
 * gives a consumer's database where it can be reached. The outbox has no index by id: on a large one this takes seconds.
 *
 * @example
 * const explained = await explainEvent(database, '7d9f2c1e-…', (consumer) => consumerDatabases[consumer]);
 */
export async function explainEvent(
  database: Queryable,
  id: string,
  databaseOf: (consumer: string) => Queryable | undefined,
): Promise<Explanation | undefined> {
  const { rows } = await database.query<ExplainedEvent>(
    `select o.id::text as id, o.seq::text as seq, o.source, o.type, o.version, o.topic, o.aggregateid as key,
            to_json(o.occurred_at) #>> '{}' as "occurredAt", o.routes
       from turnout.outbox o where o.id = $1::uuid limit 1`,
    [id],
  );
  const event = rows[0];
  if (event === undefined) return undefined;
  const stamps = event.routes === null ? [] : parseRoutes(event.routes);
  const switchovers = await switchoversOf(database, event);
  const consumers = [...new Set([...stamps.map((each) => each.consumer), ...switchovers.map((each) => each.consumer)])];
  return {
    event,
    consumers: await Promise.all(
      consumers.map(async (consumer): Promise<ExplainedRoute> => {
        const stamp = stamps.find((each) => each.consumer === consumer);
        const switchover = switchovers.find((each) => each.consumer === consumer);
        const at = databaseOf(consumer);
        return {
          consumer,
          switchover: switchover?.name,
          route: stamp?.route,
          shadow: stamp?.shadow ?? false,
          epoch: stamp?.epoch,
          number: stamp?.turn === undefined ? undefined : `${stamp.turn.generation}.${stamp.turn.number}`,
          change:
            stamp === undefined || switchover === undefined
              ? undefined
              : await changeOf(database, event.source, switchover.name, stamp.epoch),
          bucketPercent:
            switchover === undefined ? undefined : rampBucket(switchover.salt, event.key ?? event.id) / 100,
          owed: await owedCall(database, effectKeyOf(consumer, event.id)),
          atConsumer: at === undefined ? undefined : await readAtConsumer(at, consumer, event),
        };
      }),
    ),
  };
}

async function switchoversOf(
  database: Queryable,
  { source, type }: ExplainedEvent,
): Promise<{ name: string; consumer: string; salt: string }[]> {
  const { rows } = await database.query<{ name: string; consumer: string; salt: string }>(
    `select s.name, s.consumer, s.salt from turnout.switchover s
      where s.source = $1 and $2 = any (s.event_types) order by s.name`,
    [source, type],
  );
  return rows;
}

/** The change that began an epoch; later rows of the same epoch only tell of added event types. */
async function changeOf(
  database: Queryable,
  source: string,
  switchover: string,
  epoch: number,
): Promise<ExplainedRoute['change']> {
  const { rows } = await database.query<{
    stage: Stage;
    percent: string;
    at: string;
    actor: string;
    automatic: boolean;
    reason: string;
  }>(
    `select h.to_stage as stage, h.percent::text as percent, to_json(h.at) #>> '{}' as at, h.actor, h.automatic, h.reason
       from turnout.switchover_history h
      where h.source = $1 and h.switchover = $2 and h.epoch = $3::bigint
      order by h.id limit 1`,
    [source, switchover, String(epoch)],
  );
  return rows[0] === undefined ? undefined : { ...rows[0], percent: Number(rows[0].percent) };
}

async function owedCall(database: Queryable, effectKey: string): Promise<ExplainedRoute['owed']> {
  const { rows } = await database.query<NonNullable<ExplainedRoute['owed']>>(
    `select d.attempts, d.last_error as "lastError", to_json(d.due_at) #>> '{}' as "dueAt"
       from turnout.rpc_delivery d where d.effect_key = $1`,
    [effectKey],
  );
  return rows[0];
}

async function readAtConsumer(database: Queryable, consumer: string, event: ExplainedEvent): Promise<AtConsumer> {
  const key = effectKeyOf(consumer, event.id);
  const [inbox, held, gate, alarms] = await Promise.all([
    database.query<NonNullable<AtConsumer['inbox']>>(
      `select i.outcome, i.path, i.attempts, i.reason, to_json(i.finished_at) #>> '{}' as "finishedAt" from turnout.inbox i
        where i.consumer = $1 and i.effect_key = $2
          and i.occurred_at between $3::timestamptz - interval '1 day' and $3::timestamptz + interval '1 day' limit 1`,
      [consumer, key, event.occurredAt],
    ),
    database.query<NonNullable<AtConsumer['held']>>(
      `select h.reason, h.error, h.attempts, to_json(h.held_at) #>> '{}' as "heldAt" from turnout.held h
        where h.consumer = $1 and h.effect_key = $2`,
      [consumer, key],
    ),
    database.query<NonNullable<AtConsumer['gate']>>(
      `select g.generation || '.' || g.last_number as number, g.halted from turnout.gate g
        where g.consumer = $1 and g.source = $2 and g.topic = $3 and g.key = $4`,
      [consumer, event.source, event.topic, event.key],
    ),
    database.query<AtConsumer['alarms'][number]>(
      `select a.kind, to_json(a.at) #>> '{}' as at from turnout.alarm a
        where a.consumer = $1 and a.detail ->> 'effectKey' = $2 order by a.id limit 20`,
      [consumer, key],
    ),
  ]);
  return { inbox: inbox.rows[0], held: held.rows[0], gate: gate.rows[0], alarms: alarms.rows };
}

// ── In words ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** An explanation for people. Pure. */
export function explanationText({ event, consumers }: Explanation): string {
  const key = event.key === null ? 'without a key' : `key ${event.key}`;
  return [
    `${event.type} v${event.version} ${event.id}`,
    `published ${event.occurredAt} by source ${event.source} on ${event.topic}, ${key}, seq ${event.seq}`,
    ...(consumers.length === 0
      ? ['', 'No consumer is in switchover for it: consumers that subscribe get it as an event.']
      : []),
    ...consumers.flatMap((each) => ['', `${each.consumer}:`, ...sentences(each).map((line) => `  ${line}`)]),
  ].join('\n');
}

function sentences(route: ExplainedRoute): string[] {
  return [...whyThisWay(route), ...whatBecame(route)];
}

function whyThisWay({
  consumer,
  switchover,
  route,
  shadow,
  epoch,
  number,
  change,
  bucketPercent,
}: ExplainedRoute): string[] {
  if (route === undefined) {
    return [
      `carries no route: the code that published it did not declare ${switchover ?? 'the switchover'}, so that code made the call by itself, and ${consumer} only observes the event`,
    ];
  }
  const turn = number === undefined ? '' : `, number ${number} of its key`;
  const first = `route ${route}${shadow ? ' (in shadow: its event is compared)' : ''}, epoch ${epoch}${turn}`;
  if (change === undefined) return [first, 'the stage change of that epoch is not recorded here'];
  const stage = change.stage === 'ramp' ? `ramp ${change.percent} %` : change.stage;
  const who = change.automatic ? `a guardrail (${change.actor})` : change.actor;
  return [
    first,
    `because ${switchover} was in stage ${stage}, set ${change.at} by ${who}: ${change.reason}`,
    ...(change.stage === 'ramp' && bucketPercent !== undefined
      ? [
          `its key is at ${bucketPercent} % of all keys: ${bucketPercent < change.percent ? 'below' : 'not below'} ${change.percent} %, so ${route}`,
        ]
      : []),
  ];
}

function whatBecame({ route, owed, atConsumer }: ExplainedRoute): string[] {
  const lines: string[] = [];
  if (owed !== undefined) {
    const failed = owed.lastError === null ? '' : `; the last one failed: ${owed.lastError}`;
    lines.push(
      `the call is owed still, after ${owed.attempts} attempts of the sweeper${failed}${owed.dueAt === null ? '' : `; due ${owed.dueAt}`}`,
    );
    if (route === 'event')
      lines.push(
        'it was routed to events and is brought by call too (a re-drive): whichever comes second is a duplicate',
      );
  } else if (route === 'rpc') lines.push('the call is over: the consumer answered with its outcome');
  if (atConsumer === undefined) {
    lines.push('what became of it at the consumer is not known here: name its database in `consumerDatabases`');
    return lines;
  }
  const { inbox, held, gate, alarms } = atConsumer;
  if (inbox !== undefined) {
    const why = inbox.reason === null ? '' : `: ${inbox.reason}`;
    lines.push(
      inbox.outcome === 'running' || inbox.outcome === 'queued'
        ? `at the consumer: ${inbox.outcome} since ${inbox.finishedAt}${why}`
        : `at the consumer: ${inbox.outcome} ${inbox.finishedAt}, brought by ${inbox.path === 'rpc' ? 'the call' : 'the event'}${why}`,
    );
  }
  if (held !== undefined) lines.push(heldSentence(held, gate));
  if (inbox === undefined && held === undefined)
    lines.push(
      route === undefined ? 'at the consumer: no outcome, as it should be' : 'at the consumer: no outcome yet',
    );
  if (gate?.halted) lines.push(`its key is halted at ${gate.number}: ${gate.halted}`);
  for (const { kind, at } of alarms) lines.push(`alarm ${kind} ${at}`);
  return lines;
}

function heldSentence(
  { reason, error, attempts, heldAt }: NonNullable<AtConsumer['held']>,
  gate: AtConsumer['gate'],
): string {
  const why = {
    early: `early: its key is at ${gate?.number ?? 'its beginning'}`,
    parked: `parked after ${attempts} attempts`,
    behind: 'behind another event of its key that waits',
  }[reason];
  return `at the consumer: held since ${heldAt}, ${why}${error === null ? '' : `: ${error}`}`;
}
