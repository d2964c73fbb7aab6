import type { IncomingHttpHeaders } from 'node:http';

/** What a gate has to know of the request in which a procedure is called. */
export interface CallContext {
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** How many procedures the request calls; they share its headers. */
  readonly calls: number;
  /** Where the request came from, if the adapter tells. */
  readonly address: string | undefined;
  /** Sets a header of the response. Undefined: the transport has none. */
  readonly setHeader: ((name: string, value: string) => void) | undefined;
}

/** What `createContext` is given by tRPC's adapters (standalone, Express, Fastify, Next, Fetch). */
export interface ContextOptions {
  readonly req: {
    readonly headers: IncomingHttpHeaders | Headers;
    readonly socket?: { readonly remoteAddress?: string | undefined };
  };
  readonly res?: object;
  readonly resHeaders?: Headers;
  readonly info?: { readonly calls: readonly unknown[] } | undefined;
}

/**
 * The part of a tRPC context that `switchedOver` needs, made of what `createContext` is given. Without arguments it is that of a
 * call which comes through no transport (`createCaller`): such calls go through gates untouched.
 *
 * @example
 * const createContext = (options: CreateHTTPContextOptions) => ({ ...callContext(options), user: userOf(options.req) });
 * const t = initTRPC.context<Awaited<ReturnType<typeof createContext>>>().create();
 */
export function callContext(options?: ContextOptions): { readonly turnout: CallContext } {
  if (options === undefined) return { turnout: { headers: {}, calls: 1, address: undefined, setHeader: undefined } };
  const { req, info } = options;
  const headers = req.headers instanceof Headers ? Object.fromEntries(req.headers) : req.headers;
  return {
    turnout: {
      headers,
      calls: info?.calls.length ?? 1,
      address: req.socket?.remoteAddress,
      setHeader: headerSetter(options),
    },
  };
}

/** Node's response, Fastify's reply, or what the Fetch adapter hands out for it. */
function headerSetter({ res, resHeaders }: ContextOptions): CallContext['setHeader'] {
  if (resHeaders !== undefined) return (name, value) => resHeaders.set(name, value);
  const response: { setHeader?: HeaderSetter; header?: HeaderSetter } | undefined = res;
  const own = response?.setHeader ?? response?.header;
  return typeof own === 'function' ? (name, value) => void own.call(response, name, value) : undefined;
}

type HeaderSetter = (name: string, value: string) => unknown;
