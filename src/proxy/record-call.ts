// Records a call as an event, durably, before anything else happens to it; and finds the calls that were recorded before.
import { createHash } from 'node:crypto';
import type { Queryable } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Route } from '../event/index.ts';
import type { ProxiedRequest, ProxyDefinition, ProxyPublished, ProxyRoute } from './define-proxy.ts';

/** What the endpoint said to a call, as it is kept for its caller's retries. */
export interface KeptAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Missing if it was too large to keep. */
  readonly body?: unknown;
}

/** A call that was recorded before, under the same key of its caller. */
export interface KnownCall {
  readonly id: string;
  readonly route: Route;
  readonly effectKey: string;
  readonly key: string | null;
  /** Whether it was another request. */
  readonly differs: boolean;
  /** How the call ended; undefined while that isn't known. */
  readonly outcome: string | undefined;
  readonly answer: KeptAnswer | undefined;
  /** Whether the call to the endpoint is still owed. */
  readonly owed: boolean;
}

export type Recorded =
  | {
      readonly kind: 'new';
      readonly published: ProxyPublished;
      readonly route: Route;
      readonly effectKey: string;
    }
  | { readonly kind: 'known'; readonly call: KnownCall };

/** Another transaction has recorded the same call: rolls back what this one has published. */
class AlreadyKnown extends Error {
  override readonly name = 'AlreadyKnown';
}

/**
 * Publishes the event of a call in a transaction of its own; resolves when it is committed. With a key of the caller's the
 * same call is found again instead.
 */
export async function recordCall<Tx>(
  proxy: ProxyDefinition<Tx>,
  route: ProxyRoute,
  request: ProxiedRequest,
  data: unknown,
): Promise<Recorded> {
  const { turnout, database } = proxy;
  const key = callersKey(route, request);
  const call: CallKey | undefined =
    key === undefined
      ? undefined
      : {
          source: proxy.source,
          proxy: proxy.name,
          keyHash: keyHashOf(`${route.method} ${route.path}`, route.scope?.(request) ?? '', key),
          requestHash: requestHashOf(request),
        };
  if (call !== undefined) {
    const known = await findCall(database, call);
    if (known !== undefined) return { kind: 'known', call: known };
  }
  const options = { headers: tracing(request), keepsAnswers: call !== undefined };
  try {
    return await turnout.transaction(async (tx) => {
      if (call !== undefined) await requireUnknown(database.within(tx), call);
      const published = await turnout.publish(tx, route.event as never, data as never, options);
      const stamp = published.stamps.find(({ switchover }) => switchover === route.switchover.name);
      if (stamp === undefined) {
        throw new TurnoutError(
          'TURNOUT_SWITCHOVER_UNKNOWN',
          `Proxy ${proxy.name} publishes without switchover ${route.switchover.name}, so nobody would be called.`,
          { details: { switchover: route.switchover.name } },
        );
      }
      if (call !== undefined) {
        await database.within(tx).query(
          `insert into turnout.proxied_call (source, proxy, key_hash, request_hash, event_id, event_key, effect_key, route)
           values ($1, $2, $3, $4, $5::uuid, $6, $7, $8)`,
          [
            call.source,
            call.proxy,
            call.keyHash,
            call.requestHash,
            published.id,
            published.key,
            stamp.effectKey,
            stamp.route,
          ],
        );
      }
      return { kind: 'new', published, route: stamp.route, effectKey: stamp.effectKey } as const;
    });
  } catch (error) {
    const known = error instanceof AlreadyKnown && call !== undefined ? await findCall(database, call) : undefined;
    if (known === undefined) throw error;
    return { kind: 'known', call: known };
  }
}

/** Under what a call is found again, and what it has to be then. */
interface CallKey {
  readonly source: string;
  readonly proxy: string;
  readonly keyHash: string;
  readonly requestHash: string;
}

/** Two requests with one key come one after the other; the second one finds what the first has recorded. */
async function requireUnknown(tx: Queryable, { source, proxy, keyHash }: CallKey): Promise<void> {
  await tx.query('select pg_advisory_xact_lock(hashtextextended($1, 7473))', [`${source}\n${proxy}\n${keyHash}`]);
  const { rowCount } = await tx.query(
    'select from turnout.proxied_call c where c.source = $1 and c.proxy = $2 and c.key_hash = $3',
    [source, proxy, keyHash],
  );
  if (rowCount !== 0) throw new AlreadyKnown('The call was recorded by another request.');
}

interface CallRow {
  id: string;
  route: Route;
  effect_key: string;
  key: string | null;
  request_hash: string;
  outcome: string | null;
  answer: string | null;
  owed: boolean;
}

/** In one statement: what is owed and what has an outcome change together, so a call that is over is never seen as neither. */
async function findCall(
  database: Queryable,
  { source, proxy, keyHash, requestHash }: CallKey,
): Promise<KnownCall | undefined> {
  const { rows } = await database.query<CallRow>(
    `select c.event_id::text as id, c.route, c.effect_key, c.event_key as key, c.request_hash, c.outcome, c.answer::text as answer,
            exists (select from turnout.rpc_delivery d where d.effect_key = c.effect_key) as owed
       from turnout.proxied_call c where c.source = $1 and c.proxy = $2 and c.key_hash = $3`,
    [source, proxy, keyHash],
  );
  const row = rows[0];
  if (row === undefined) return undefined;
  return {
    id: row.id,
    route: row.route,
    effectKey: row.effect_key,
    key: row.key,
    differs: row.request_hash !== requestHash,
    outcome: row.outcome ?? undefined,
    answer: row.answer === null ? undefined : (JSON.parse(row.answer) as KeptAnswer),
    owed: row.owed,
  };
}

/** Forgets keys that are older than the proxy keeps them, and of whose calls nothing more is to come; gives how many. */
export async function forgetCalls<Tx>({ database, source, name, keepMs }: ProxyDefinition<Tx>): Promise<number> {
  const { rows } = await database.query<{ forgotten: number }>(
    'select turnout.forget_proxied_calls($1, $2, make_interval(secs => $3::float8 / 1000), 10000) as forgotten',
    [source, name, keepMs],
  );
  return rows[0]!.forgotten;
}

/** The key under which a caller repeats a call, if it names one. */
export function callersKey(
  { idempotencyHeader = 'idempotency-key' }: ProxyRoute,
  { headers }: Pick<ProxiedRequest, 'headers'>,
): string | undefined {
  const value = headers[idempotencyHeader.toLowerCase()];
  const text = (typeof value === 'string' ? value : value?.join(', '))?.trim();
  return text === undefined || text === '' ? undefined : text;
}

/** What a caller's key stands for, so that neither its length nor what it gives away matters. */
export function keyHashOf(route: string, scope: string, key: string): string {
  return createHash('sha256')
    .update(JSON.stringify([route, scope, key]))
    .digest('hex');
}

/** What makes two requests the same one: where they go and what they say, not who carried them. */
function requestHashOf({ method, path, query, body }: ProxiedRequest): string {
  const bytes = body instanceof Uint8Array ? body : (JSON.stringify(body) ?? '');
  return createHash('sha256').update(`${method} ${path}?${query.toString()}\n`).update(bytes).digest('hex');
}

function tracing({ headers }: ProxiedRequest): Record<string, string> {
  const { traceparent, tracestate } = headers;
  return {
    ...(typeof traceparent === 'string' ? { traceparent } : {}),
    ...(typeof tracestate === 'string' ? { tracestate } : {}),
  };
}
