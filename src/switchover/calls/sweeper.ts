// The sweeper makes the calls that nobody else makes: those of processes that crashed after their commit, those that failed,
// and those of events that SQL or a serverless function published.
//
//   due_at null    a process promised to call right after its commit: due after twice its time-out, from when first seen
//   due_at past    claimed with `for update skip locked` and leased by moving due_at ahead: no two sweepers on one row
//   answered       the row is deleted; else it is due again later (deliverCall)
//
// Of an ordered key, only the row with the lowest number is ever claimed, so that its calls are made in order.
// A callee that fails is asked by one call at a time until it answers again.
import type { Database, Queryable } from '../../database/index.ts';
import type { Turn } from '../../event/index.ts';
import { failpoint, retryDelayMs, service, silentLogger, sleep } from '../../lifecycle/index.ts';
import type { Logger, RetryPolicy, Service } from '../../lifecycle/index.ts';
import type { SwitchoverDefinition } from '../define-switchover.ts';
import { defaultCallRetry, deliverCall, eventColumns, toEvent } from './deliver-call.ts';
import type { CallRetryPolicy, Delivered, EventRow } from './deliver-call.ts';
import { adoptedForMs, leasedForMs } from './due.ts';
import { requireEndpoints } from '../stages/require-endpoints.ts';

export interface RpcSweeper extends Service {
  /** What it has done since it was made. */
  counters(): RpcSweeperCounters;
}

export interface RpcSweeperCounters {
  /** Calls that got their outcome through the sweeper. */
  readonly redriven: number;
  /** Of these, the ones whose effect had happened before. */
  readonly duplicates: number;
  /** Attempts that ended without an outcome. */
  readonly failed: number;
}

export interface RpcSweeperOptions<Tx = unknown> {
  readonly source: string;
  readonly database: Database<Tx>;
  /** Their calls are made; rows of other switchovers are left alone. */
  readonly switchovers: readonly SwitchoverDefinition[];
  readonly logger?: Logger;
  /** How long to wait when there was nothing to do, in milliseconds. Default 1,000. */
  readonly pollMs?: number;
  /** Calls in flight at most, for each switchover. Default 8. */
  readonly concurrency?: number;
  /** Waits between attempts; default from 1 s up to 60 s. It never gives up, whatever `attempts` says. */
  readonly retry?: CallRetryPolicy;
}

/**
 * Makes calls that are owed, as a service: in `turnout run`, or inside an app. As many as one likes may run; each row has
 * one of them at a time.
 *
 * @example
 * const sweeper = rpcSweeper({ source: 'orders', database, switchovers: [confirmation], logger: jsonLogger });
 * await sweeper.start();
 */
export function rpcSweeper<Tx>(options: RpcSweeperOptions<Tx>): RpcSweeper {
  const counters = { redriven: 0, duplicates: 0, failed: 0 };
  const { logger = silentLogger } = options;

  const run = service('rpc sweeper', async (signal, ready) => {
    // Fails at once, and says so, if the database can't be reached or was not migrated.
    await options.database.query('select from turnout.rpc_delivery limit 0');
    await requireEndpoints(options.database, options.source, options.switchovers);
    ready();
    await Promise.all(options.switchovers.map((switchover) => sweepOne(switchover, options, logger, counters, signal)));
    if (options.switchovers.length === 0) await sleep(2 ** 31 - 1, signal);
  });
  return { ...run, counters: () => ({ ...counters }) };
}

type Counters = { -readonly [Name in keyof RpcSweeperCounters]: number };

/** Waits after the database failed. */
const databaseRetry: RetryPolicy = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 200, maxDelayMs: 10_000 };

async function sweepOne<Tx>(
  switchover: SwitchoverDefinition,
  { source, database, pollMs = 1_000, concurrency = 8, retry = defaultCallRetry }: RpcSweeperOptions<Tx>,
  logger: Logger,
  counters: Counters,
  signal: AbortSignal,
): Promise<void> {
  const inFlight = new Set<Promise<void>>();
  let calleeFails = false;
  let databaseFailures = 0;
  let adoptedAt = Number.NEGATIVE_INFINITY;

  function count(delivered: Delivered): void {
    calleeFails = delivered.kind === 'pending';
    if (delivered.kind === 'pending') counters.failed++;
    else {
      counters.redriven++;
      if (delivered.outcome === 'duplicate') counters.duplicates++;
    }
  }

  function begin(claim: Claim): void {
    const { event, turn, shadow, attempt } = claim;
    const call = deliverCall(
      // A row doesn't say whether a proxy's caller will ask again.
      { switchover, event, turn, shadow, attempt, keepsAnswer: true },
      { database, logger, retry, patienceMs: 0 },
    ).then((delivered) => {
      inFlight.delete(call);
      count(delivered);
    });
    inFlight.add(call);
  }

  while (!signal.aborted) {
    try {
      if (performance.now() - adoptedAt >= pollMs) {
        await adopt(database, source, switchover);
        adoptedAt = performance.now();
      }
      const free = calleeFails ? Math.max(0, 1 - inFlight.size) : concurrency - inFlight.size;
      const claims = free === 0 ? [] : await claimDue(database, source, switchover, free, logger);
      databaseFailures = 0;
      claims.forEach(begin);
      // With work in hand, look again as soon as a call is over; and in between, for what has become due.
      await firstOf(inFlight, pollMs, signal);
      // One that fails at once must not be followed by the next at once.
      if (calleeFails && inFlight.size === 0) await sleep(Math.min(pollMs, 1_000), signal);
    } catch (error) {
      const delayMs = retryDelayMs(databaseRetry, ++databaseFailures, Math.random());
      logger.warn('The sweeper can’t read what is owed.', { switchover: switchover.name, error, againInMs: delayMs });
      await sleep(delayMs, signal);
    }
  }
  await Promise.all(inFlight);
}

/** Resolves when one of the calls is over, or after `ms`. */
async function firstOf(calls: ReadonlySet<Promise<void>>, ms: number, signal: AbortSignal): Promise<void> {
  const enough = new AbortController();
  await Promise.race([...calls, sleep(ms, AbortSignal.any([signal, enough.signal]))]);
  enough.abort();
}

/** Gives the rows that a process promised to deliver a time from which they count as left behind. By the database's clock alone. */
export async function adopt(
  database: Queryable,
  source: string,
  switchover: Pick<SwitchoverDefinition, 'name' | 'timeoutMs'>,
): Promise<void> {
  await database.query(
    `update turnout.rpc_delivery d
        set due_at = clock_timestamp() + make_interval(secs => $3::float8 / 1000)
       from (select c.effect_key from turnout.rpc_delivery c
              where c.source = $1 and c.switchover = $2 and c.due_at is null
              limit 1000 for update skip locked) fresh
      where d.effect_key = fresh.effect_key`,
    [source, switchover.name, adoptedForMs(switchover.timeoutMs)],
  );
}

interface Claim {
  readonly event: ReturnType<typeof toEvent>;
  readonly turn: Turn | undefined;
  readonly shadow: boolean;
  readonly attempt: number;
}

interface ClaimRow extends EventRow {
  effect_key: string;
  found: boolean;
  generation: number | null;
  number: string | null;
  shadow: boolean;
  attempts: number;
}

/** Takes calls that are due, as due.ts says in plain data, and leases them to this sweeper. */
export async function claimDue(
  database: Queryable,
  source: string,
  switchover: Pick<SwitchoverDefinition, 'name' | 'timeoutMs'>,
  limit: number,
  logger: Logger,
): Promise<Claim[]> {
  if (failpoint('calls.no-sweeper')) return [];
  // The lease outlasts the call and, for those that send missing events first, a few more.
  // `nulls first` and `number is not null` repeat what is known already: only so do both indexes serve, and a backlog of 100,000
  // calls costs under 1 ms a claim; without them it is scanned as often as it has rows.
  const { rows } = await database.query<ClaimRow>(
    // The rows to claim are an expression of their own: as the inner side of a join they may be looked for again and again, and each
    // time the limit counts anew.
    `with due as materialized (
       select c.effect_key from turnout.rpc_delivery c
        where c.source = $1 and c.switchover = $2 and c.due_at <= clock_timestamp()
          and (c.number is null or not exists (
            select from turnout.rpc_delivery earlier
             where earlier.consumer = c.consumer and earlier.source = c.source and earlier.topic = c.topic and earlier.key = c.key
               and earlier.number is not null and (earlier.generation, earlier.number) < (c.generation, c.number)))
        order by c.due_at nulls first
        limit $4 for update skip locked
     ), claimed as (
       update turnout.rpc_delivery d
          set due_at = clock_timestamp() + make_interval(secs => $3::float8 / 1000), attempts = d.attempts + 1
         from due
        where d.effect_key = due.effect_key
       returning d.effect_key, d.xid, d.seq, d.generation, d.number, d.shadow, d.attempts)
     select c.effect_key, o.seq is not null as found, c.generation, c.number::text as number, c.shadow, c.attempts, ${eventColumns}
       from claimed c
       left join turnout.outbox o on o.xid = c.xid and o.seq = c.seq
      order by c.seq`,
    [source, switchover.name, leasedForMs(switchover.timeoutMs), limit],
  );
  const claims: Claim[] = [];
  for (const row of rows) {
    if (!row.found) {
      logger.error('A call is owed for an event that is no longer in the outbox.', {
        switchover: switchover.name,
        effectKey: row.effect_key,
      });
      continue;
    }
    const turn = row.number === null ? undefined : { generation: row.generation!, number: Number(row.number) };
    claims.push({ event: toEvent(row), turn, shadow: row.shadow, attempt: row.attempts });
  }
  return claims;
}
