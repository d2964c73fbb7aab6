// What the requests and responses of Express and Fastify have in common.
import type { IncomingMessage, ServerResponse } from 'node:http';

export interface RequestLike {
  readonly body?: unknown;
  readonly method: string;
  /** Express */
  readonly route?: { readonly path?: unknown };
  /** Fastify */
  readonly routeOptions?: { readonly url?: string };
  readonly raw?: IncomingMessage;
}

export interface ResponseLike {
  /** Fastify */
  readonly raw?: ServerResponse;
}

export function endpointName({ method, route, routeOptions }: RequestLike): string | undefined {
  const path = typeof route?.path === 'string' ? route.path : routeOptions?.url;
  return path === undefined ? undefined : `${method} ${path}`;
}

/** Node's own; those of Express are that already. */
export function rawRequest(request: RequestLike): IncomingMessage {
  return request.raw ?? (request as unknown as IncomingMessage);
}

export function rawResponse(response: ResponseLike): ServerResponse {
  return response.raw ?? (response as unknown as ServerResponse);
}
