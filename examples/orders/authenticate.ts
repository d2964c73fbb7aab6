import type { IncomingHttpHeaders } from 'node:http';

/** Whether a request comes from the shop. In real life: mutual TLS, or a signed token. */
export function isShop(request: { readonly headers: IncomingHttpHeaders }): boolean {
  return request.headers.authorization === 'Bearer shop-service';
}
