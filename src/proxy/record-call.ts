// Records a call as an event, durably, before anything else happens to it; and finds the calls that were recorded before.
import { createHash, randomUUID } from 'node:crypto';
import type { Database, Queryable } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Route } from '../event/index.ts';
import type { ProxiedRequest, ProxyDefinition, ProxyPublished, ProxyRoute } from './define-proxy.ts';
import { eventIdOf } from './match-route.ts';

/** What a caller may be answered, as it is kept for its retries. */
export interface KeptAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** A call that was recorded before, under the same key of its caller. */
export interface KnownCall {
  readonly id: string;
  readonly route: Route;
  readonly effectKey: string;
  readonly key: string | null;
  /** Whether it was another request. */
  readonly differs: boolean;
  readonly answer: KeptAnswer | undefined;
  /** Whether the call to the endpoint is still owed. */
  readonly owed: boolean;
  /** How long ago it was recorded, in milliseconds. */
  readonly ageMs: number;
}

export type Recorded =
  | {
      readonly kind: 'new';
      readonly published: ProxyPublished;
      readonly route: Route;
      readonly effectKey: string;
      readonly keyed: boolean;
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
  const id =
    key === undefined
      ? randomUUID()
      : eventIdOf(proxy.name, `${route.method} ${route.path}`, route.scope?.(request) ?? '', key);
  const hash = hashOf(request);
  if (key !== undefined) {
    const known = await findCall(database, id, hash);
    if (known !== undefined) return { kind: 'known', call: known };
  }
  const headers = tracing(request);
  try {
    return await turnout.transaction(async (tx) => {
      if (key !== undefined) await requireUnknown(database.within(tx), id);
      const published = await turnout.publish(tx, route.event as never, data as never, { id, headers });
      const stamp = published.stamps.find(({ switchover }) => switchover === route.switchover.name);
      if (stamp === undefined) {
        throw new TurnoutError(
          'TURNOUT_SWITCHOVER_UNKNOWN',
          `Proxy ${proxy.name} publishes without switchover ${route.switchover.name}, so nobody would be called.`,
          { details: { switchover: route.switchover.name } },
        );
      }
      if (key !== undefined) {
        await database.within(tx).query(
          `insert into turnout.proxied_call (id, source, request_hash, route, effect_key, key)
           values ($1::uuid, $2, $3, $4, $5, $6)`,
          [id, proxy.source, hash, stamp.route, stamp.effectKey, published.key],
        );
      }
      return {
        kind: 'new',
        published,
        route: stamp.route,
        effectKey: stamp.effectKey,
        keyed: key !== undefined,
      } as const;
    });
  } catch (error) {
    const known = error instanceof AlreadyKnown ? await findCall(database, id, hash) : undefined;
    if (known === undefined) throw error;
    return { kind: 'known', call: known };
  }
}

/** Two requests with one key come one after the other; the second one finds what the first has recorded. */
async function requireUnknown(tx: Queryable, id: string): Promise<void> {
  await tx.query('select pg_advisory_xact_lock(hashtextextended($1, 7473))', [id]);
  const { rowCount } = await tx.query('select from turnout.proxied_call c where c.id = $1::uuid', [id]);
  if (rowCount !== 0) throw new AlreadyKnown('The call was recorded by another request.');
}

interface CallRow {
  id: string;
  route: Route;
  effect_key: string;
  key: string | null;
  request_hash: string;
  answer: string | null;
  owed: boolean;
  age_ms: number;
}

async function findCall<Tx>(database: Database<Tx>, id: string, hash: string): Promise<KnownCall | undefined> {
  const { rows } = await database.query<CallRow>(
    `select c.id::text as id, c.route, c.effect_key, c.key, c.request_hash, c.answer::text as answer,
            exists (select from turnout.rpc_delivery d where d.effect_key = c.effect_key) as owed,
            (extract(epoch from clock_timestamp() - c.at) * 1000)::float8 as age_ms
       from turnout.proxied_call c where c.id = $1::uuid`,
    [id],
  );
  const row = rows[0];
  if (row === undefined) return undefined;
  return {
    id: row.id,
    route: row.route,
    effectKey: row.effect_key,
    key: row.key,
    differs: row.request_hash !== hash,
    answer: row.answer === null ? undefined : (JSON.parse(row.answer) as KeptAnswer),
    owed: row.owed,
    ageMs: row.age_ms,
  };
}

const maxKeptCharacters = 65_536;

/** Keeps what the endpoint answered, for retries. */
export async function keepAnswer<Tx>(database: Database<Tx>, id: string, answer: KeptAnswer): Promise<void> {
  // jsonb can't hold NUL.
  if (answer.body.length > maxKeptCharacters || answer.body.includes('\0')) return;
  await database.query('update turnout.proxied_call set answer = $2::text::jsonb where id = $1::uuid', [
    id,
    JSON.stringify(answer),
  ]);
}

/** Forgets keys that are older than the proxy keeps them; gives how many. */
export async function forgetCalls<Tx>({ database, source, keepMs }: ProxyDefinition<Tx>): Promise<number> {
  const { rowCount } = await database.query(
    `delete from turnout.proxied_call c
      where c.id in (select o.id from turnout.proxied_call o
                      where o.source = $1 and o.at < clock_timestamp() - make_interval(secs => $2::float8 / 1000)
                      order by o.at limit 10000)`,
    [source, keepMs],
  );
  return rowCount ?? 0;
}

function callersKey(
  { idempotencyHeader = 'idempotency-key' }: ProxyRoute,
  { headers }: ProxiedRequest,
): string | undefined {
  const value = headers[idempotencyHeader.toLowerCase()];
  const text = typeof value === 'string' ? value.trim() : undefined;
  return text === undefined || text === '' ? undefined : text;
}

/** What makes two requests the same one: where they go and what they say, not who carried them. */
function hashOf({ method, path, query, body }: ProxiedRequest): string {
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
