// Which route a request takes, and which headers go on with it: plain data in, plain data out.
import { createHash } from 'node:crypto';

/** A path in segments; `name` stands for one of any text. */
export type PathPattern = readonly ({ readonly text: string } | { readonly name: string })[];

/** Undefined if it is no path. */
export function parsePath(path: string): PathPattern | undefined {
  if (!/^\/[^?#\s]*$/.test(path)) return undefined;
  return segmentsOf(path).map((segment) => (/^:\w+$/.test(segment) ? { name: segment.slice(1) } : { text: segment }));
}

/**
 * What stands for the names of a pattern; undefined if the path is another one. Written in another way (a slash at the end or twice,
 * letters as %61) it is the same path to most servers, so it is here: nobody gets around being recorded by spelling.
 */
export function matchPath(pattern: PathPattern, path: string): Record<string, string> | undefined {
  let segments: string[];
  try {
    segments = segmentsOf(path).map(decodeURIComponent);
  } catch {
    return undefined;
  }
  if (segments.length !== pattern.length) return undefined;
  const params: Record<string, string> = {};
  for (const [index, part] of pattern.entries()) {
    const segment = segments[index]!;
    if ('name' in part) params[part.name] = segment;
    else if (part.text !== segment) return undefined;
  }
  return params;
}

/** Empty ones left out, `.` and `..` followed. */
function segmentsOf(path: string): string[] {
  const segments: string[] = [];
  for (const segment of path.split('/')) {
    if (segment === '' || segment === '.') continue;
    if (segment === '..') segments.pop();
    else segments.push(segment);
  }
  return segments;
}

/** The id of the event that a caller's key stands for: the same for the same key, as a UUID of version 8. */
export function eventIdOf(proxy: string, route: string, scope: string, key: string): string {
  const hash = createHash('sha256')
    .update(JSON.stringify([proxy, route, scope, key]))
    .digest();
  hash[6] = (hash[6]! & 0x0f) | 0x80;
  hash[8] = (hash[8]! & 0x3f) | 0x80;
  const hex = hash.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join('-');
}

/** About one connection only (RFC 9110, 7.6.1). */
const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);

/** Names and values, flat, as `rawHeaders` has them; repeated ones stay repeated. */
export type FlatHeaders = readonly string[];

/** Headers that go on to the other side: without those about one connection, and those that `dropped` names. */
export function endToEnd(headers: FlatHeaders, dropped: (name: string) => boolean): string[] {
  const named = new Set(hopByHop);
  eachHeader(headers, (name, value) => {
    if (name.toLowerCase() === 'connection')
      for (const token of value.split(',')) named.add(token.trim().toLowerCase());
  });
  const kept: string[] = [];
  eachHeader(headers, (name, value) => {
    const lower = name.toLowerCase();
    if (!named.has(lower) && !dropped(lower)) kept.push(name, value);
  });
  return kept;
}

/** Headers of a request that is passed on. What begins with `turnout-` is for publishers to say, not for callers. */
export function forwardedHeaders(
  headers: FlatHeaders,
  { host, address, scheme }: { host: string; address: string | undefined; scheme: string },
): string[] {
  const before: string[] = [];
  let named: string | undefined;
  eachHeader(headers, (name, value) => {
    const lower = name.toLowerCase();
    if (lower === 'x-forwarded-for') before.push(value);
    if (lower === 'host') named ??= value;
  });
  const own = ['host', 'x-forwarded-for', 'x-forwarded-proto', 'x-forwarded-host'];
  const passed = endToEnd(headers, (name) => own.includes(name) || name.startsWith('turnout-') || name === 'expect');
  const via = [...before, ...(address === undefined ? [] : [address])].join(', ');
  return [
    ...passed,
    'host',
    host,
    ...(via === '' ? [] : ['x-forwarded-for', via]),
    'x-forwarded-proto',
    scheme,
    ...(named === undefined ? [] : ['x-forwarded-host', named]),
  ];
}

function eachHeader(headers: FlatHeaders, each: (name: string, value: string) => void): void {
  for (let index = 0; index + 1 < headers.length; index += 2) each(headers[index]!, headers[index + 1]!);
}
