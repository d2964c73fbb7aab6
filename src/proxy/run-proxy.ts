// The process in front of an old endpoint.
//
//   request of a route ─▶ recorded: event and stamp in one transaction ─┬ stage rpc ────▶ the switchover's call ─▶ the real answer
//                         │                                             │                 └ none in time ─▶ 504 (or 202); still owed
//                         │                                             └ stage event ──▶ 202; the consumer has it from Kafka
//                         └ can't be recorded ─▶ 503 (or passed on without a record, counted and reported)
//   any other request ──▶ passed on, untouched
//
// What is recorded is called for at least once, whatever crashes: the sweeper (`turnout run`) goes on. The endpoint's own database
// knows nothing of the event; docs/bridge.md says what follows from that.
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { requireMigrations } from '../database/index.ts';
import { isTurnoutError } from '../errors/index.ts';
import { service, silentLogger, sleep } from '../lifecycle/index.ts';
import type { Logger, Service } from '../lifecycle/index.ts';
import { comparable, headersForCallers, requireEndpoints } from '../switchover/index.ts';
import { isRpcAnswer } from './define-proxy.ts';
import type { ProxiedRequest, ProxyAnswer, ProxyDefinition, ProxyReply, ProxyRoute } from './define-proxy.ts';
import { findRoute, originForm } from './find-route.ts';
import { passOn } from './pass-on.ts';
import type { PassOn } from './pass-on.ts';
import { serveWithoutUpgrade } from './plain-request.ts';
import { readBody } from './read-request.ts';
import { callersKey, forgetCalls, recordCall } from './record-call.ts';
import type { KeptAnswer, KnownCall, Recorded } from './record-call.ts';

export interface Proxy extends Service {
  /** Where it listens, while it runs. */
  address(): AddressInfo | undefined;
  counters(): ProxyCounters;
}

/** What a proxy has done since it was made. */
export interface ProxyCounters {
  /** Calls that became events. */
  readonly recorded: number;
  /** Of these, the ones that went as events and were not forwarded. */
  readonly asEvents: number;
  /** Retries of calls that had been recorded before. */
  readonly repeated: number;
  /** Calls that were refused: bad data, unknown callers, no outbox. */
  readonly refused: number;
  /** Calls that were forwarded without a record, since the outbox could not be written. */
  readonly unrecorded: number;
  /** Requests of no route. */
  readonly passed: number;
}

type Counters = { -readonly [Name in keyof ProxyCounters]: number };

interface Running<Tx> {
  readonly proxy: ProxyDefinition<Tx>;
  readonly logger: Logger;
  readonly counters: Counters;
  readonly onward: PassOn;
}

/**
 * Runs a proxy in this process, as many as one likes beside each other. `stop` takes no new requests, lets those in hand come to their
 * end, and closes its `turnout`. Throws TURNOUT_MIGRATION_MISSING, TURNOUT_DATABASE_UNREACHABLE, and what listening throws.
 *
 * @example
 * const proxy = runProxy(parcels, { logger: jsonLogger });
 * await proxy.start();
 */
export function runProxy<Tx>(proxy: ProxyDefinition<Tx>, options: { readonly logger?: Logger } = {}): Proxy {
  const { logger = silentLogger } = options;
  const counters: Counters = { recorded: 0, asEvents: 0, repeated: 0, refused: 0, unrecorded: 0, passed: 0 };
  let server: Server | undefined;

  const run = service(`proxy ${proxy.name}`, async (signal, ready) => {
    await requireMigrations(proxy.database, 'producer', { logger });
    await requireEndpoints(
      proxy.database,
      proxy.source,
      proxy.routes.map(({ switchover }) => switchover),
    );
    const onward = passOn(proxy.target, proxy.targetTimeoutMs);
    const running: Running<Tx> = { proxy, logger, counters, onward };
    const unanswered = new Set<ServerResponse>();
    server = createServer((request, response) => {
      unanswered.add(response.once('close', () => unanswered.delete(response)));
      if (signal.aborted) response.shouldKeepAlive = false;
      void serve(running, request, response);
    });
    // A caller that keeps its connection would bring one request after the other: each answer from now on is the last one there.
    signal.addEventListener('abort', () => unanswered.forEach((response) => (response.shouldKeepAlive = false)), {
      once: true,
    });
    const own = server;
    server.on('upgrade', (request, socket, head) => {
      const target = originForm(request.url ?? '/');
      const isPlain = target !== undefined && findRoute(proxy.routes, request.method ?? '', target).kind === 'none';
      // Other wishes a server may ignore; and a call is recorded whatever protocol its caller would have liked.
      if (!isPlain || request.method !== 'GET' || request.headers.upgrade?.toLowerCase() !== 'websocket') {
        serveWithoutUpgrade(own, request, socket, head);
        return;
      }
      counters.passed++;
      onward.upgrade(request, socket, head);
    });
    const forgetting = new AbortController();
    let forgotten: Promise<void> = Promise.resolve();
    try {
      await listening(server, proxy.listen);
      forgotten = forgetOld(running, forgetting.signal);
      ready();
      await Promise.race([aborted(signal), failure(server)]);
    } finally {
      forgetting.abort();
      await closed(server, proxy.graceMs);
      server = undefined;
      onward.close();
      await forgotten;
      await proxy.turnout.close?.();
    }
  });
  return {
    ...run,
    address: () => (server?.listening === true ? (server.address() as AddressInfo) : undefined),
    counters: () => ({ ...counters }),
  };
}

async function serve<Tx>(running: Running<Tx>, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { proxy, logger, counters, onward } = running;
  const { method = '', headers, socket } = request;
  const target = originForm(request.url ?? '/');
  const found =
    target === undefined
      ? ({ kind: 'refused', why: 'The request target is neither a path nor an http URL.' } as const)
      : findRoute(proxy.routes, method, target);
  try {
    if (found.kind === 'refused') {
      counters.refused++;
      response.setHeader('connection', 'close');
      return send(response, problem(400, 'TURNOUT_PATH_AMBIGUOUS', found.why));
    }
    if (found.kind === 'none') {
      counters.passed++;
      return await onward.request(request, response);
    }
    const bytes = await readBody(request, proxy.maxBodyBytes);
    if (bytes === undefined) {
      counters.refused++;
      response.setHeader('connection', 'close');
      return send(
        response,
        problem(413, 'TURNOUT_PAYLOAD_TOO_LARGE', `The body has more than ${proxy.maxBodyBytes} bytes.`),
      );
    }
    const proxied: ProxiedRequest = {
      method,
      path: found.path,
      query: queryOf(target!),
      params: found.params,
      headers,
      body: comparable(bytes, headers),
      address: socket.remoteAddress,
    };
    const answer = await answerCall(running, found.route, proxied);
    if (answer === 'pass') await onward.request(request, response, bytes);
    else send(response, answer);
  } catch (error) {
    // The caller hung up before its request was complete: nothing was recorded.
    if (!request.complete && request.destroyed) return;
    logger.error('A request could not be served.', { proxy: proxy.name, method: request.method, error });
    if (response.headersSent) response.destroy();
    else send(response, problem(500, 'TURNOUT_HANDLER_FAILED', 'The request could not be served.'));
  }
}

/** Records a call and gives what its caller is answered; `pass`: it is to be passed on as it is. */
async function answerCall<Tx>(
  running: Running<Tx>,
  route: ProxyRoute,
  request: ProxiedRequest,
): Promise<ProxyAnswer | 'pass'> {
  const { proxy, counters } = running;
  if (proxy.authenticate !== undefined && !(await isAuthentic(proxy.authenticate, request))) {
    counters.refused++;
    return problem(401, 'TURNOUT_UNAUTHENTICATED', 'The caller is not known.');
  }
  let data: unknown;
  try {
    data = await route.data(request);
  } catch (error) {
    counters.refused++;
    return problem(400, 'TURNOUT_EVENT_DATA_INVALID', error instanceof Error ? error.message : String(error));
  }
  if (data === undefined) {
    counters.passed++;
    return 'pass';
  }
  let recorded: Recorded;
  try {
    recorded = await recordCall(proxy, route, request, data);
  } catch (error) {
    return notRecorded(running, route, request, error);
  }
  if (recorded.kind === 'known') {
    counters.repeated++;
    return answerAgain(route, recorded.call);
  }
  counters.recorded++;
  return answerNew(running, route, recorded);
}

async function answerNew<Tx>(
  { counters }: Running<Tx>,
  route: ProxyRoute,
  { published, effectKey, route: goes }: Extract<Recorded, { kind: 'new' }>,
): Promise<ProxyAnswer> {
  const call = { eventId: published.id, key: published.key, effectKey };
  const { switchover, timeoutMs = switchover.timeoutMs + 1_000 } = route;
  const reply: ProxyReply = await published.reply(switchover, { timeoutMs });
  if (goes === 'event') {
    counters.asEvents++;
    return (route.answer ?? accepted)(reply.reply === undefined ? call : { ...call, reply: reply.reply });
  }
  if (reply.status !== 'pending' && isRpcAnswer(reply.reply)) return asAnswer(reply.reply);
  if (route.onTimeout === 202) return accepted(call);
  return problem(
    504,
    'TURNOUT_ENDPOINT_UNAVAILABLE',
    'The endpoint has given no answer that counts. The call is kept, and is made again.',
  );
}

function answerAgain(
  route: ProxyRoute,
  { id, effectKey, key, route: goes, differs, outcome, answer, owed }: KnownCall,
): ProxyAnswer {
  if (differs) return problem(422, 'TURNOUT_EFFECT_KEY_REUSED', 'The idempotency key is known with another request.');
  if (answer !== undefined) return asAnswer(answer);
  const call = { eventId: id, key, effectKey };
  if (goes === 'event') return (route.answer ?? accepted)(call);
  if (owed)
    return { ...problem(409, 'TURNOUT_EFFECT_RUNNING', 'The call is being made.'), headers: { 'retry-after': '1' } };
  if (outcome === 'applied' || outcome === 'duplicate') return accepted(call);
  return problem(504, 'TURNOUT_ENDPOINT_UNAVAILABLE', 'The call is over, and nobody knows what the endpoint has said.');
}

function notRecorded<Tx>(
  { proxy, counters, logger }: Running<Tx>,
  route: ProxyRoute,
  request: ProxiedRequest,
  error: unknown,
): ProxyAnswer | 'pass' {
  const { method, path } = request;
  const code = isTurnoutError(error) ? error.code : 'TURNOUT_HANDLER_FAILED';
  if (code === 'TURNOUT_EVENT_DATA_INVALID' || code === 'TURNOUT_KEY_MISSING' || code === 'TURNOUT_PAYLOAD_TOO_LARGE') {
    counters.refused++;
    return problem(400, code, error instanceof Error ? error.message : String(error));
  }
  // If it may have been recorded, now or by an earlier attempt of its caller, passing it on could have the effect twice.
  const mayBeRecorded = code === 'TURNOUT_COMMIT_UNKNOWN' || callersKey(route, request) !== undefined;
  if (proxy.onOutboxFailure === 'open' && !mayBeRecorded) {
    counters.unrecorded++;
    logger.error('A call is forwarded without a record: no consumer hears of it, and it is not made again.', {
      proxy: proxy.name,
      method,
      path,
      error,
    });
    proxy.onUnrecorded?.({ method, path, error });
    return 'pass';
  }
  counters.refused++;
  logger.error('A call was refused, since it can’t be recorded.', { proxy: proxy.name, method, path, error });
  return { ...problem(503, code, 'The call can’t be recorded.'), headers: { 'retry-after': '1' } };
}

function queryOf(target: string): URLSearchParams {
  return new URLSearchParams(/\?([^#]*)/.exec(target.replace(/#.*$/s, ''))?.[1] ?? '');
}

async function isAuthentic(
  authenticate: (request: ProxiedRequest) => boolean | Promise<boolean>,
  request: ProxiedRequest,
): Promise<boolean> {
  try {
    // Only `true`: what forgot its `return`, or gave a user in place of a verdict, lets nobody in.
    const verdict: unknown = await authenticate(request);
    return verdict === true;
  } catch {
    return false;
  }
}

const accepted = ({ eventId }: { readonly eventId: string }): ProxyAnswer => ({
  status: 202,
  body: { eventId, status: 'accepted' },
});

function problem(status: number, code: string, message: string): ProxyAnswer {
  return { status, headers: { 'turnout-error': code }, body: { error: { code, message } } };
}

/** The endpoint's answer, as its caller gets it. */
function asAnswer({ status, headers, body }: KeptAnswer): ProxyAnswer {
  // As `rpcFetch` parsed it: a text is one, anything else was JSON.
  return {
    status,
    headers: headersForCallers(headers),
    body: typeof body === 'string' ? body : (JSON.stringify(body) ?? ''),
  };
}

function send(response: ServerResponse, { status, headers = {}, body }: ProxyAnswer): void {
  const isObject = body !== undefined && typeof body !== 'string' && !Buffer.isBuffer(body);
  const sent = isObject ? JSON.stringify(body) : body;
  response.writeHead(status, { ...(isObject ? { 'content-type': 'application/json' } : {}), ...headers });
  response.end(sent);
}

/** Keys that are old are forgotten now and then; nobody waits for it. */
async function forgetOld<Tx>({ proxy, logger }: Running<Tx>, signal: AbortSignal): Promise<void> {
  do {
    try {
      while ((await forgetCalls(proxy)) > 0 && !signal.aborted);
    } catch (error) {
      logger.warn('Old keys of callers could not be forgotten; it is tried again.', { proxy: proxy.name, error });
    }
  } while (await sleep(600_000, signal));
}

function listening(server: Server, { port, host }: { readonly port: number; readonly host?: string }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** Rejects if the server can't go on. */
function failure(server: Server): Promise<never> {
  return new Promise((_resolve, reject) => server.once('error', reject));
}

/** Takes no new connections, and closes those that are left after `graceMs`. */
async function closed(server: Server, graceMs: number): Promise<void> {
  if (!server.listening) return;
  const patience = setTimeout(() => server.closeAllConnections(), graceMs);
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    server.closeIdleConnections();
  });
  clearTimeout(patience);
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
