// Whether two sides did the same, and if not, where. Pure: plain data in, plain data out.
import { createHash } from 'node:crypto';
import { matches, normalised } from './paths.ts';
import type { Path, Pattern } from './paths.ts';

/** What is left out of a comparison, and what is made alike before it. */
export interface Alike {
  readonly ignore: readonly Pattern[];
  readonly normalise: readonly (readonly [Pattern, (value: unknown, path: string) => unknown])[];
}

/** One place where the sides differ. */
export interface Difference {
  readonly path: Path;
  readonly what: 'missing' | 'unexpected' | 'other type' | 'other value';
}

/** The value with what is ignored taken away and what is normalised made alike; as JSON would have it, names in order. */
export function settled(value: unknown, alike: Alike, path: Path = []): unknown {
  let own = value;
  for (const [pattern, normalise] of alike.normalise) if (matches(pattern, path)) own = normalise(own, path.join('.'));
  if (typeof own === 'object' && own !== null && 'toJSON' in own && typeof own.toJSON === 'function')
    own = (own.toJSON as () => unknown)();
  if (Array.isArray(own)) {
    return own.flatMap((each: unknown, index) => {
      const place = [...path, String(index)];
      return isIgnored(alike, place) ? [] : [settled(each ?? null, alike, place)];
    });
  }
  if (typeof own === 'object' && own !== null) {
    return Object.fromEntries(
      Object.entries(own)
        .filter(([name, member]) => member !== undefined && !isIgnored(alike, [...path, name]))
        .sort(([one], [other]) => (one < other ? -1 : 1))
        .map(([name, member]) => [name, settled(member, alike, [...path, name])]),
    );
  }
  if (typeof own === 'bigint') return own.toString();
  return own ?? null;
}

function isIgnored({ ignore }: Alike, path: Path): boolean {
  return ignore.some((pattern) => matches(pattern, path));
}

/** At most so many are told of one comparison. */
const mostDifferences = 50;

/** Where two settled values differ, in the order of their places. */
export function differences(
  expected: unknown,
  actual: unknown,
  path: Path = [],
  found: Difference[] = [],
): Difference[] {
  if (found.length >= mostDifferences) return found;
  const [one, other] = [kindOf(expected), kindOf(actual)];
  if (one !== other) found.push({ path, what: 'other type' });
  else if (Array.isArray(expected)) listDifferences(expected, actual as unknown[], path, found);
  else if (one === 'object') memberDifferences(expected as Members, actual as Members, path, found);
  else if (expected !== actual) found.push({ path, what: 'other value' });
  return found;
}

type Members = Readonly<Record<string, unknown>>;

function kindOf(value: unknown): string {
  return value === null ? 'null' : Array.isArray(value) ? 'list' : typeof value;
}

function memberDifferences(expected: Members, actual: Members, path: Path, found: Difference[]): void {
  for (const name of [...new Set([...Object.keys(expected), ...Object.keys(actual)])].sort()) {
    const place = [...path, name];
    if (!Object.hasOwn(actual, name)) found.push({ path: place, what: 'missing' });
    else if (!Object.hasOwn(expected, name)) found.push({ path: place, what: 'unexpected' });
    else differences(expected[name], actual[name], place, found);
  }
}

/**
 * Writes of two handlers need not come in one order. What both sides have is taken away first; the rest is compared in the
 * order in which it came. Lists inside a value are ordered like any JSON: there the order is part of it.
 */
function listDifferences(
  expected: readonly unknown[],
  actual: readonly unknown[],
  path: Path,
  found: Difference[],
): void {
  const isUnordered = path.length <= 2 && (path[0] === 'writes' || path[0] === 'effects');
  const [own, others] = isUnordered ? withoutCommon(expected, actual) : [expected, actual];
  for (let index = 0; index < Math.max(own.length, others.length); index++) {
    const place = [...path, String(index)];
    if (index >= others.length) found.push({ path: place, what: 'missing' });
    else if (index >= own.length) found.push({ path: place, what: 'unexpected' });
    else differences(own[index], others[index], place, found);
  }
}

function withoutCommon(one: readonly unknown[], other: readonly unknown[]): [unknown[], unknown[]] {
  const left = other.map((each) => JSON.stringify(each));
  const own = one.filter((each) => {
    const at = left.indexOf(JSON.stringify(each));
    if (at === -1) return true;
    left.splice(at, 1);
    return false;
  });
  return [own, left.map((text) => JSON.parse(text) as unknown)];
}

/** What a mismatch is about. */
export type MismatchKind = 'writes' | 'answer' | 'effects' | 'error' | 'several';

export interface Group {
  readonly fingerprint: string;
  readonly kind: MismatchKind;
  /** The places, with what may be data taken out: `writes.mail.*.insert.subject: other value`. */
  readonly paths: readonly string[];
}

/**
 * The group of a comparison's differences: the same for the same kind of difference, whatever the values, how many rows there were
 * and in which order they came. Undefined if there are none.
 */
export function groupOf(found: readonly Difference[]): Group | undefined {
  if (found.length === 0) return undefined;
  const paths = [...new Set(found.map(({ path, what }) => `${normalised(path)}: ${what}`))].sort();
  const about = new Set(found.map(({ path }) => kindOfPlace(path)));
  const kind = about.size === 1 ? [...about][0]! : about.has('error') ? 'error' : 'several';
  const fingerprint = createHash('sha256')
    .update(JSON.stringify([kind, paths]))
    .digest('hex')
    .slice(0, 12);
  return { fingerprint, kind, paths };
}

function kindOfPlace([first]: Path): MismatchKind {
  return first === 'writes' || first === 'answer' || first === 'effects' ? first : 'error';
}
