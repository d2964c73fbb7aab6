import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createCapture, defineBridge, defineEvent, defineProxy, defineSwitchover, on, proxyRoute } from 'turnout';
import { z } from 'zod';
import { findRoute, originForm, parsePath } from '../../src/proxy/find-route.ts';
import type { Matchable } from '../../src/proxy/find-route.ts';
import { endToEnd, forwardedHeaders } from '../../src/proxy/forwarded-headers.ts';
import { keyHashOf } from '../../src/proxy/record-call.ts';

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

const post = (path: string, more: Partial<Matchable> = {}): Matchable => ({
  method: 'POST',
  pattern: parsePath(path)!,
  ...more,
});

/** The path as the route writes it; `none` and `refused` else. */
function foundAs(route: Matchable, target: string): string {
  const found = findRoute([route], 'POST', originForm(target)!);
  return found.kind === 'route' ? found.path : found.kind;
}

test.each([
  // Other spellings of the same path.
  ['/a/:id/b', '/a/7/b', '/a/7/b'],
  ['/a/:id', '/a/x%20y', '/a/x y'],
  ['/a', '/a/', '/a'],
  ['/a', '//a', '/a'],
  ['/a', '/%61', '/a'],
  ['/a', '/b/../a/.', '/a'],
  ['/a', '/b/%2e%2E/a', '/a'],
  ['/a', '/../a', '/a'],
  ['/a', '/A', '/a'],
  ['/Ab', '/aB?q=/x', '/Ab'],
  ['/a', '/a;v=1', '/a'],
  ['/a', '/a;v=1/;w', '/a'],
  ['/a', '/b/..;x/a', '/a'],
  ['/a', '/a#x', '/a'],
  ['/a/:id', '/a/é', '/a/é'],
  ['/a', 'http://anywhere/a', '/a'],
  ['/a', 'HTTPS://user@anywhere:1/b/../a?q', '/a'],
  ['/a', 'http:///a', '/a'],
  ['/', 'http://anywhere?q=1', '/'],
  // Some servers take these for the route's.
  ['/a', '/a%2F', 'refused'],
  ['/a', '/%2fa', 'refused'],
  ['/a', '/b%2F..%2Fa', 'refused'],
  ['/a', '/b%2Fc/../a', 'refused'],
  ['/a', '/b\\..\\a', 'refused'],
  ['/a', '\\a', 'no path'],
  ['/a', '/a%5c', 'refused'],
  ['/a', '/a%00', 'refused'],
  ['/a', '/a%00.png', 'none'],
  ['/a/:id', '/a/%zz', 'refused'],
  ['/a/:id', '/%61/%zz', 'refused'],
  ['/a/:id', '/a/%c0%af', 'refused'],
  ['/a/:id', '/a/..', 'refused'],
  ['/a/:id', '/a/x%2Fy', 'refused'],
  ['/:id', '/x%2Fy', 'refused'],
  // Others.
  ['/a', '/a/b', 'none'],
  ['/a/:id', '/a', 'none'],
  ['/a', '/%zz', 'none'],
  ['/a', '/b%2Fa', 'none'],
  ['/a', '/b?x=/a', 'none'],
  ['/a', '/%2561', 'none'],
  ['/a', '/b/../../c', 'refused'],
  ['/a', '*', 'none'],
])('%s and %s', (pattern, target, is) => {
  if (is === 'no path') expect(originForm(target)).toBeUndefined();
  else expect(foundAs(post(pattern), target)).toBe(is);
});

test('another method is another route, and letter case counts where it is told to', () => {
  expect(findRoute([post('/a')], 'GET', '/a').kind).toBe('none');
  expect(foundAs(post('/a', { caseSensitive: true }), '/A')).toBe('none');
  expect(foundAs(post('/a', { caseSensitive: true }), '/a')).toBe('/a');
});

test.each(['ftp://a/b', 'b', 'a:1', 'javascript://a/b', ''])('%s is no request target of a server', (target) => {
  expect(originForm(target)).toBeUndefined();
});

test('a pattern matches what is written for it, however its values are spelled', () => {
  const value = fc
    .string({ minLength: 1, unit: 'grapheme' })
    .filter((text) => !/^\.\.?$|[/\\]|\p{Cc}/u.test(text) && text.isWellFormed());
  fc.assert(
    fc.property(value, value, (first, second) => {
      const target = `/x/${encodeURIComponent(first)}/y/${encodeURIComponent(second)}`;
      const found = findRoute([post('/x/:first/y/:second')], 'POST', target);
      expect(found).toMatchObject({ kind: 'route', params: { first, second } });
    }),
  );
});

test('no mixture of spellings gets a path past its route', () => {
  /** Each changes how a path is written, and not what it is to a server that decodes and follows dots. */
  const spellings: ((path: string) => string)[] = [
    (path) => path.replace(/(?<!%.?)[a-z]/i, (letter) => `%${letter.charCodeAt(0).toString(16)}`),
    (path) => path.toUpperCase(),
    (path) => path.replace('/', '//'),
    (path) => `${path}/`,
    (path) => `${path};v=1`,
    (path) => `/x/..${path}`,
    (path) => `/./%2e${path}`,
    (path) => path.replace(/\/(?=[^/]*$)/, '/y/%2E%2e/'),
    (path) => `${path}?q=/z`,
    (path) => `http://elsewhere:81${path}`,
  ];
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: spellings.length - 1 }), { maxLength: 6 }), (chosen) => {
      // The query, then the host come last, and once.
      const order = [...chosen.filter((each) => each < 8), ...[8, 9].filter((each) => chosen.includes(each))];
      const target = order.reduce((path, each) => spellings[each]!(path), '/parcels/scans');
      expect(foundAs(post('/parcels/scans'), target)).toBe('/parcels/scans');
    }),
  );
});

test('a caller’s key makes one hash, and another key, route or scope another one', () => {
  const given = fc.tuple(fc.string(), fc.string(), fc.string());
  fc.assert(
    fc.property(given, given, (one, other) => {
      expect(keyHashOf(...one)).toMatch(/^[0-9a-f]{64}$/);
      expect(keyHashOf(...one) === keyHashOf(...other)).toBe(one.every((text, index) => text === other[index]));
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
  ['keepMs', () => defineProxy({ ...proxy, keepMs: 10 })],
  ['path', () => proxyRoute(Scanned, { ...options, path: 'scans' })],
  ['path', () => proxyRoute(Scanned, { ...options, path: '/a/../scans' })],
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
