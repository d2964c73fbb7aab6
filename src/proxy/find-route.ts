// Which route a request takes: plain data in, plain data out. What is recorded and authenticated hangs on it, so a path is read as
// most servers read it, and where servers differ, a path that one of them could take for a route's is refused.
//
//   target ─▶ origin-form ─▶ segments, without ;parameters and empty ones, decoded, dots followed
//              │ not a path         ├─ they are a route's ────────────────────────────────▶ recorded
//              └─▶ 400              ├─ read otherwise they could be: %2F, \, %00, %zz, .. ▶ 400
//                                   └─ else ──────────────────────────────────────────────▶ passed on

/** A path in segments; `name` stands for one of any text. */
export type PathPattern = readonly ({ readonly text: string } | { readonly name: string })[];

/** What of a route decides which requests it takes. */
export interface Matchable {
  readonly method: string;
  readonly pattern: PathPattern;
  readonly caseSensitive?: boolean;
}

export type Found<Route> =
  /** `path` as the route writes it, with what stood for its names. */
  | {
      readonly kind: 'route';
      readonly route: Route;
      readonly params: Readonly<Record<string, string>>;
      readonly path: string;
    }
  | { readonly kind: 'none' }
  | { readonly kind: 'refused'; readonly why: string };

/** Undefined if it is no path. */
export function parsePath(path: string): PathPattern | undefined {
  if (!/^\/[^?#\s;\\%]*$/.test(path)) return undefined;
  const segments = path.split('/').filter((segment) => segment !== '');
  if (segments.some((segment) => segment === '.' || segment === '..')) return undefined;
  return segments.map((segment) => (/^:\w+$/.test(segment) ? { name: segment.slice(1) } : { text: segment }));
}

/**
 * A request target as it is asked of a server that is no proxy: `http://anywhere/path` is `/path` (RFC 9112, 3.2.2), since nobody
 * is to reach another host through this one. Undefined if it is neither that nor a path nor `*`.
 */
export function originForm(target: string): string | undefined {
  if (target.startsWith('/') || target === '*') return target;
  const rest = /^https?:\/\/[^/?#\\]*(.*)$/is.exec(target)?.[1];
  if (rest === undefined) return undefined;
  return rest.startsWith('/') ? rest : `/${rest}`;
}

/** The route of a request; `target` in origin-form. */
export function findRoute<Route extends Matchable>(
  routes: readonly Route[],
  method: string,
  target: string,
): Found<Route> {
  const candidates = routes.filter((route) => route.method === method);
  const read = readPath(target);
  if (read.isUnclear) {
    const near = candidates.some((route) => read.all.some((segments) => beginsAs(route, segments)));
    if (near) return { kind: 'refused', why: 'The path can be read in more than one way.' };
  } else {
    for (const route of candidates) {
      const params = matchPath(route, read.segments);
      if (params !== undefined) return { kind: 'route', route, params, path: pathOf(route.pattern, params) };
    }
    if (candidates.some((route) => read.all.some((segments) => matchPath(route, segments) !== undefined)))
      return { kind: 'refused', why: 'The path can be read in more than one way.' };
  }
  return read.climbs ? { kind: 'refused', why: 'The path leaves the root.' } : { kind: 'none' };
}

interface PathRead {
  /** As most servers read it. */
  readonly segments: readonly string[];
  /** As some server may: with dots followed and left, encoded slashes as text and as slashes. */
  readonly all: readonly (readonly string[])[];
  /** Encoded slashes, backslashes, control characters, broken encoding: servers differ in what they take them for. */
  readonly isUnclear: boolean;
  /** More `..` than there are segments before them. */
  readonly climbs: boolean;
}

const slashes = /[/\\]/;
// Those that servers end a path at, or drop. (The others can't be told from the bytes of a letter that was not encoded.)
const isControl = (letter: string): boolean => letter < ' ' || letter === '\u007f';

function readPath(target: string): PathRead {
  const raw = target
    .replace(/[?#].*$/s, '')
    .split('/')
    .map(withoutParameters);
  const decoded = raw.map(decode);
  const asText = decoded.map(({ text }) => text).filter((text) => text !== '');
  const asSlashes = asText
    .flatMap((text) => text.split(slashes))
    .map((text) => withoutControls(withoutParameters(text)))
    .filter((text) => text !== '');
  const [one, other] = [followed(asText), followed(asSlashes)];
  return {
    segments: one.segments,
    all: [one.segments, other.segments, asText, asSlashes],
    isUnclear:
      decoded.some(({ isBroken }) => isBroken) ||
      asText.some((text) => slashes.test(text) || withoutControls(text) !== text),
    climbs: one.climbs || other.climbs,
  };
}

const withoutControls = (segment: string): string =>
  segment
    .split('')
    .filter((letter) => !isControl(letter))
    .join('');

const withoutParameters = (segment: string): string => segment.replace(/;.*$/s, '');

function decode(segment: string): { readonly text: string; readonly isBroken: boolean } {
  try {
    return { text: decodeURIComponent(segment), isBroken: false };
  } catch {
    const text = segment.replace(/%([0-7][0-9a-f])/gi, (_, hex: string) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    );
    return { text, isBroken: true };
  }
}

/** Without `.`, and without what `..` takes back. */
function followed(segments: readonly string[]): { readonly segments: readonly string[]; readonly climbs: boolean } {
  const left: string[] = [];
  let climbs = false;
  for (const segment of segments) {
    if (segment === '.') continue;
    if (segment !== '..') left.push(segment);
    else if (left.pop() === undefined) climbs = true;
  }
  return { segments: left, climbs };
}

/** What stands for the names of a route's pattern; undefined if it is another path. */
function matchPath(
  { pattern, caseSensitive = false }: Matchable,
  segments: readonly string[],
): Record<string, string> | undefined {
  if (segments.length !== pattern.length) return undefined;
  const params: Record<string, string> = {};
  for (const [index, part] of pattern.entries()) {
    const segment = segments[index]!;
    if ('name' in part) params[part.name] = segment;
    else if (!isSame(part.text, segment, caseSensitive)) return undefined;
  }
  return params;
}

/** Whether a path begins as a route does, up to its first name. */
function beginsAs({ pattern, caseSensitive = false }: Matchable, segments: readonly string[]): boolean {
  const names = pattern.findIndex((part) => 'name' in part);
  return pattern
    .slice(0, names === -1 ? pattern.length : names)
    .every((part, index) => 'text' in part && isSame(part.text, segments[index] ?? '', caseSensitive));
}

function isSame(one: string, other: string, caseSensitive: boolean): boolean {
  return caseSensitive ? one === other : one.toLowerCase() === other.toLowerCase();
}

function pathOf(pattern: PathPattern, params: Readonly<Record<string, string>>): string {
  return `/${pattern.map((part) => ('name' in part ? params[part.name]! : part.text)).join('/')}`;
}
