// What the requests and responses of Express and Fastify have in common.
import type { IncomingHttpHeaders } from 'node:http';

export interface RequestLike {
  readonly headers: IncomingHttpHeaders;
  readonly body?: unknown;
  readonly method: string;
  readonly ip?: string | undefined;
  /** Express */
  readonly route?: { readonly path?: unknown };
  /** Fastify */
  readonly routeOptions?: { readonly url?: string };
}

export interface ResponseLike {
  readonly statusCode: number;
  status(status: number): unknown;
  getHeaders(): Readonly<Record<string, string | number | readonly string[] | undefined>>;
  header(name: string, value: string | readonly string[]): unknown;
  removeHeader(name: string): unknown;
}

export function endpointName({ method, route, routeOptions }: RequestLike): string | undefined {
  const path = typeof route?.path === 'string' ? route.path : routeOptions?.url;
  return path === undefined ? undefined : `${method} ${path}`;
}

export function headerNames(response: ResponseLike): ReadonlySet<string> {
  return new Set(Object.keys(response.getHeaders()));
}

/** The headers that have been set since. */
export function addedHeaders(
  response: ResponseLike,
  before: ReadonlySet<string>,
): Record<string, string | readonly string[]> {
  return Object.fromEntries(
    Object.entries(response.getHeaders())
      .filter(([name]) => !before.has(name))
      .map(([name, value]) => [name, typeof value === 'number' ? String(value) : (value ?? '')]),
  );
}

export function writeHeaders(
  response: ResponseLike,
  headers: Readonly<Record<string, string | readonly string[]>>,
): void {
  for (const [name, value] of Object.entries(headers)) response.header(name, value);
}
