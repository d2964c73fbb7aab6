// What a proxy is told: where it listens, what stands behind it, and which calls of it become events.
import type { Database } from '../database/index.ts';
import { invalidDefinition } from '../errors/index.ts';
import type { AnyEventDefinition, EventDefinition, Route } from '../event/index.ts';
import { isName } from '../event/index.ts';
import type { RpcAnswer, SwitchoverDefinition } from '../switchover/index.ts';
import { parsePath } from './find-route.ts';
import type { PathPattern } from './find-route.ts';

/** What of `turnout` a proxy uses: what `createTurnout` gives fits. */
export interface ProxyTurnout<Tx> {
  transaction<Result>(work: (tx: Tx) => Promise<Result>): Promise<Result>;
  publish(
    tx: Tx,
    event: EventDefinition<string, never>,
    data: never,
    options?: { readonly headers?: Readonly<Record<string, string>>; readonly keepsAnswers?: boolean },
  ): Promise<ProxyPublished>;
  close?(): Promise<void>;
}

/** What of a published event a proxy uses. */
export interface ProxyPublished {
  readonly id: string;
  readonly key: string | null;
  readonly stamps: readonly { readonly switchover: string; readonly route: Route; readonly effectKey: string }[];
  reply(switchover: SwitchoverDefinition, options?: { readonly timeoutMs?: number }): Promise<ProxyReply>;
}

/** What a switchover's `reply` gives, as far as a proxy reads it. */
export interface ProxyReply {
  readonly route: Route;
  readonly status?: 'done' | 'rejected' | 'pending';
  /** By call: what the endpoint answered. By event: the data of the reply event, if the switchover names one. */
  readonly reply?: unknown;
}

/** A caller's request, read whole. */
export interface ProxiedRequest {
  readonly method: string;
  /** As the route writes it, with what stood for its names; without the query. */
  readonly path: string;
  readonly query: URLSearchParams;
  /** What stood for `:name` in the path, decoded. */
  readonly params: Readonly<Record<string, string>>;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** Parsed if it is JSON, else its bytes. */
  readonly body: unknown;
  /** Where the caller's connection came from. */
  readonly address: string | undefined;
}

/** What a caller is answered. An object is sent as JSON. */
export interface ProxyAnswer {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: unknown;
}

/** A call that was recorded and is not answered by the endpoint. */
export interface RecordedCall {
  readonly eventId: string;
  readonly key: string | null;
  readonly effectKey: string;
  /** The data of the reply event, if the switchover names one and it came in time. */
  readonly reply?: unknown;
}

export interface ProxyRouteOptions<Input> {
  readonly method: string;
  /** `/orders/:orderId/confirmation`: `:name` stands for one segment. */
  readonly path: string;
  /** Whether `/Orders` is another path to the endpoint. Default false: to many it is the same, and would go unrecorded. */
  readonly caseSensitive?: boolean;
  /** The switchover whose stage decides: in `rpc` the call is forwarded by its `rpc`, in `event` it is not. */
  readonly switchover: SwitchoverDefinition;
  /** What the event says. Undefined: pass the request on as it is, unrecorded. If it throws, the caller gets 400. */
  readonly data: (request: ProxiedRequest) => Input | undefined | Promise<Input | undefined>;
  /**
   * The header by which a caller repeats a call, in lower case; default `idempotency-key`. A retry with the same value is the
   * same event, for `keepMs`. Calls without it are new ones each time.
   */
  readonly idempotencyHeader?: string;
  /** Tells callers apart that may use the same keys: a tenant, the name of a client. Not a token: a new one would make a new event. */
  readonly scope?: (request: ProxiedRequest) => string;
  /** What a caller is answered whose call goes as an event. Default: 202 with `{ eventId, status: 'accepted' }`. */
  readonly answer?: (recorded: RecordedCall) => ProxyAnswer;
  /** How long a caller waits for the endpoint, in milliseconds. Default: the switchover's time-out and a second. */
  readonly timeoutMs?: number;
  /** What a caller is told then; the call stays owed and is made again. Default 504. 202: as if it went as an event. */
  readonly onTimeout?: 504 | 202;
}

/** A route of a proxy; made by {@link proxyRoute}. */
export interface ProxyRoute extends ProxyRouteOptions<unknown> {
  readonly event: AnyEventDefinition;
  readonly pattern: PathPattern;
}

/**
 * Binds requests of a path to an event type; the type of `data` is inferred from the definition.
 * Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * proxyRoute(ParcelSent, {
 *   method: 'POST',
 *   path: '/parcels',
 *   switchover: tracking,
 *   data: ({ body }) => body as Parcel,
 * });
 */
export function proxyRoute<Name extends string, Input, Data>(
  event: EventDefinition<Name, Input, Data>,
  options: ProxyRouteOptions<NoInfer<Input>>,
): ProxyRoute {
  const { path, method, switchover, timeoutMs } = options;
  const pattern = parsePath(path);
  if (pattern === undefined)
    throw invalidDefinition('path', `${JSON.stringify(path)} is no path of a route: /a/:name/b.`);
  if (!/^[A-Z]+$/.test(method))
    throw invalidDefinition('method', `${JSON.stringify(method)} is no method, such as POST.`);
  if (!switchover?.eventTypes?.includes(event.name))
    throw invalidDefinition('switchover', `The switchover of ${method} ${path} makes no calls for ${event.name}.`);
  if (timeoutMs !== undefined && !(timeoutMs > 0))
    throw invalidDefinition('timeoutMs', `${timeoutMs} is no time to wait.`);
  return Object.freeze({ ...options, event, pattern });
}

export interface ProxyOptions<Tx> {
  readonly name: string;
  /** The source whose events it publishes, as `turnout` was given it. */
  readonly source: string;
  /** What publishes, made with the switchovers of all routes. */
  readonly turnout: ProxyTurnout<Tx>;
  /** The same database that `turnout` was given: the outbox in it is the proxy's own. */
  readonly database: Database<Tx>;
  readonly listen: { readonly port: number; readonly host?: string };
  /** What stands behind: `http://legacy:8080`. */
  readonly target: string | URL;
  readonly routes: readonly ProxyRoute[];
  /**
   * Whether a request of a route may be recorded. In stage `event` nobody else looks: the endpoint behind isn't asked any more. Default:
   * everybody's may.
   */
  readonly authenticate?: (request: ProxiedRequest) => boolean | Promise<boolean>;
  /**
   * What becomes of a call that can't be recorded. `'closed'` (default): 503, nothing happens, and a caller that asks again loses
   * nothing. `'open'`: forwarded without a record, counted and reported; then it is not made again if it fails, and no consumer hears of it.
   * One with its caller's key is refused all the same: it may have been recorded before, and would be made twice.
   */
  readonly onOutboxFailure?: 'closed' | 'open';
  /** Called for each call that was forwarded without a record. */
  readonly onUnrecorded?: (call: { readonly method: string; readonly path: string; readonly error: unknown }) => void;
  /** The largest body of a call that is recorded, in bytes; a larger one gets 413. Default 1 MB. What is passed on has no bound. */
  readonly maxBodyBytes?: number;
  /** How long the target may be silent to a request that is passed on, in milliseconds. Default 60,000. */
  readonly targetTimeoutMs?: number;
  /**
   * How long a caller's key is known, in milliseconds, at least: longer while its call is owed or nobody knows how it ended. Default 7
   * days, at least an hour. Afterwards the same key is a new event.
   */
  readonly keepMs?: number;
  /** How long requests in hand may go on when the process stops, in milliseconds. Default 15,000. */
  readonly graceMs?: number;
}

/** A proxy as {@link defineProxy} made it. */
export interface ProxyDefinition<Tx = unknown> extends Required<
  Omit<ProxyOptions<Tx>, 'target' | 'authenticate' | 'onUnrecorded'>
> {
  readonly target: URL;
  readonly authenticate: ProxyOptions<Tx>['authenticate'];
  readonly onUnrecorded: ProxyOptions<Tx>['onUnrecorded'];
}

/** A caller that asks again asks within minutes; a key that is forgotten before that makes its call twice. */
const shortestKeepMs = 3_600_000;

/**
 * Defines an HTTP proxy in front of an endpoint whose callers nobody can change: it records their calls as events, in its own
 * outbox, and forwards them, or doesn't, by the stage of the route's switchover. `turnout proxy <name>`, or {@link runProxy} inside an
 * app. Recorded, a call is made at least once, also after a crash; docs/bridge.md says what that doesn't promise.
 * Throws TURNOUT_DEFINITION_INVALID with the path of the bad field.
 *
 * @example
 * export const parcels = defineProxy({
 *   name: 'parcels',
 *   source: 'parcels-proxy',
 *   turnout: createTurnout({ source: 'parcels-proxy', database, switchovers: [tracking] }),
 *   database,
 *   listen: { port: 8080 },
 *   target: 'http://legacy-parcels:8080',
 *   routes: [proxyRoute(ParcelSent, { method: 'POST', path: '/parcels', switchover: tracking, data: ({ body }) => body as Parcel })],
 * });
 */
export function defineProxy<Tx>(options: ProxyOptions<Tx>): ProxyDefinition<Tx> {
  const { name, source, turnout, database, listen, routes, onOutboxFailure = 'closed' } = options;
  if (!isName(name)) throw invalidDefinition('name', `${JSON.stringify(name)} can't be the name of a proxy.`);
  if (!isName(source)) throw invalidDefinition('source', `${JSON.stringify(source)} can't be the name of a source.`);
  if (typeof turnout?.transaction !== 'function' || typeof turnout.publish !== 'function')
    throw invalidDefinition('turnout', `Proxy ${name} needs what createTurnout gives.`);
  if (typeof database?.within !== 'function') throw invalidDefinition('database', `Proxy ${name} has no database.`);
  if (!Number.isInteger(listen?.port) || listen.port < 0 || listen.port > 65_535)
    throw invalidDefinition('listen.port', `Proxy ${name} can't listen on port ${listen?.port}.`);
  if (!Array.isArray(routes) || routes.length === 0)
    throw invalidDefinition('routes', `Proxy ${name} records nothing: it has no routes.`);
  if (onOutboxFailure !== 'closed' && onOutboxFailure !== 'open')
    throw invalidDefinition('onOutboxFailure', `Proxy ${name} can't have onOutboxFailure ${String(onOutboxFailure)}.`);
  const keepMs = options.keepMs ?? 7 * 24 * 60 * 60 * 1000;
  if (!(keepMs >= shortestKeepMs))
    throw invalidDefinition('keepMs', `Proxy ${name} keeps keys for ${keepMs} ms; it is an hour (3,600,000) at least.`);
  const target = URL.canParse(String(options.target)) ? new URL(options.target) : undefined;
  if (target === undefined || !/^https?:$/.test(target.protocol) || target.search !== '')
    throw invalidDefinition(
      'target',
      `Proxy ${name} has the target ${String(options.target)}; it is http://… or https://….`,
    );
  return Object.freeze({
    name,
    source,
    turnout,
    database,
    listen,
    target,
    routes,
    onOutboxFailure,
    authenticate: options.authenticate,
    onUnrecorded: options.onUnrecorded,
    maxBodyBytes: options.maxBodyBytes ?? 1_000_000,
    targetTimeoutMs: options.targetTimeoutMs ?? 60_000,
    keepMs,
    graceMs: options.graceMs ?? 15_000,
  });
}

/** What a call gave, where a reply is one. */
export function isRpcAnswer(reply: unknown): reply is RpcAnswer {
  return typeof reply === 'object' && reply !== null && 'status' in reply && 'headers' in reply;
}
