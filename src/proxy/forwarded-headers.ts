// Which headers go on with a request, or with its answer: plain data in, plain data out.

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
