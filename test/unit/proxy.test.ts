import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createCapture, defineBridge, defineEvent, defineProxy, defineSwitchover, on, proxyRoute } from 'turnout';
import { z } from 'zod';
import { endToEnd, eventIdOf, forwardedHeaders, matchPath, parsePath } from '../../src/proxy/match-route.ts';

const Scanned = defineEvent({
  name: 'warehouse.scanned',
  version: 1,
  topic: 'scans',
  schema: z.object({ id: z.string() }),
  key: (scan) => scan.id,
  order: 'none',
});
const answer = () => ({ status: 200, headers: {}, body: {} });
const switchover = defineSwitchover({ name: 'a', consumer: 'b', order: 'none', rpc: [on(Scanned, answer)] });

test.each([
  ['/a/:id/b', '/a/7/b', { id: '7' }],
  ['/a/:id', '/a/x%20y', { id: 'x y' }],
  ['/a', '/a/', {}],
  ['/a', '//a', {}],
  ['/a', '/%61', {}],
  ['/a', '/b/../a/.', {}],
  ['/a', '/a/b', undefined],
  ['/a', '/A', undefined],
  ['/a/:id', '/a', undefined],
  ['/a', '/%zz', undefined],
])('%s and %s', (pattern, path, params) => {
  expect(matchPath(parsePath(pattern)!, path)).toEqual(params);
});

test('a pattern matches what is written for it, however its values are spelled', () => {
  const value = fc.string({ minLength: 1 }).filter((text) => text !== '.' && text !== '..');
  fc.assert(
    fc.property(value, value, (first, second) => {
      const path = `/x/${encodeURIComponent(first)}/y/${encodeURIComponent(second)}`;
      expect(matchPath(parsePath('/x/:first/y/:second')!, path)).toEqual({ first, second });
    }),
  );
});

test('a caller’s key makes one id, and another key, route, scope or proxy another one', () => {
  const given = fc.tuple(fc.string(), fc.string(), fc.string(), fc.string());
  fc.assert(
    fc.property(given, given, (one, other) => {
      const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
      expect(eventIdOf(...one)).toMatch(uuid);
      expect(eventIdOf(...one) === eventIdOf(...other)).toBe(one.every((text, index) => text === other[index]));
    }),
  );
});

test('what is about one connection goes no further, nor what Connection names', () => {
  const headers = ['Connection', 'close, X-Hop', 'X-Hop', '1', 'TE', 'trailers', 'X-Kept', '1', 'X-Kept', '2'];
  expect(endToEnd(headers, () => false)).toEqual(['X-Kept', '1', 'X-Kept', '2']);
});

test('a request that is passed on says where it came from, and nothing that only publishers may say', () => {
  const headers = ['Host', 'shop', 'Turnout-Consumer', 'x', 'Authorization', 'a', 'X-Forwarded-For', '1.1.1.1'];
  const passed = forwardedHeaders(headers, { host: 'legacy:80', address: '2.2.2.2', scheme: 'http' });
  expect(passed.flatMap((name, index) => (index % 2 === 0 ? [`${name}: ${passed[index + 1]}`] : []))).toEqual([
    'Authorization: a',
    'host: legacy:80',
    'x-forwarded-for: 1.1.1.1, 2.2.2.2',
    'x-forwarded-proto: http',
    'x-forwarded-host: shop',
  ]);
});

const database = { transaction: () => undefined, within: () => undefined } as never;
const turnout = { transaction: () => undefined, publish: () => undefined } as never;
const options = { method: 'POST', path: '/scans', switchover, data: () => ({ id: '1' }) };
const route = proxyRoute(Scanned, options);
const proxy = { name: 'p', source: 's', turnout, database, listen: { port: 0 }, target: 'http://a', routes: [route] };
const bridge = { name: 'b', order: 'none', from: 'now', calls: [on(Scanned, answer)] } as const;

test.each<[string, () => unknown]>([
  ['target', () => defineProxy({ ...proxy, target: 'ftp://a' })],
  ['routes', () => defineProxy({ ...proxy, routes: [] })],
  ['listen.port', () => defineProxy({ ...proxy, listen: { port: 70_000 } })],
  ['source', () => defineProxy({ ...proxy, source: 'Not A Name' })],
  ['path', () => proxyRoute(Scanned, { ...options, path: 'scans' })],
  ['method', () => proxyRoute(Scanned, { ...options, method: 'post' })],
  ['order', () => defineBridge(database, { ...bridge, order: 'some' as never })],
  ['calls', () => defineBridge(database, { ...bridge, calls: [] })],
  ['calls.0', () => defineBridge(database, { ...bridge, order: 'key' })],
  ['timeoutMs', () => defineBridge(database, { ...bridge, timeoutMs: 0 })],
  ['rateLimit', () => defineBridge(database, { ...bridge, rateLimit: { perSecond: 0, burst: 1 } })],
  ['data', () => createCapture(turnout, { event: Scanned, data: undefined as never })],
  ['turnout', () => createCapture({} as never, { event: Scanned, data: () => undefined })],
])('a definition with a bad %s is refused', (path, define) => {
  expect(define).toThrow(expect.objectContaining({ code: 'TURNOUT_DEFINITION_INVALID', details: { path } }));
});
