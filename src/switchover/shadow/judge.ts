import { differences, groupOf, settled } from './difference.ts';
import type { Alike, Group } from './difference.ts';
import { masked } from './mask.ts';
import type { Mask } from './mask.ts';
import { normalised } from './paths.ts';
import type { Writes } from './writes.ts';

/** What one side did. What is undefined is not compared. */
export interface Side {
  readonly writes?: Writes | undefined;
  readonly answer?: unknown;
  readonly effects?: readonly unknown[] | undefined;
  /** It refused or threw; then there is nothing else. */
  readonly error?: { readonly name: string; readonly code: string | null; readonly message: string } | undefined;
}

export type Judgement =
  | { readonly kind: 'matched' }
  | { readonly kind: 'mismatched'; readonly group: Group; readonly expected: unknown; readonly actual: unknown };

/** Largest JSON of a side that is kept whole; of a larger one only the places that differ. */
const mostBytes = 8_000;

/** Compares what the call did (expected) with what the event handler would have done (actual). Pure. */
export function judge(expected: Side, actual: Side, alike: Alike, mask: Mask): Judgement {
  const failed = [expected, actual].filter((side) => side.error !== undefined).length;
  if (failed === 2) return { kind: 'matched' };
  if (failed === 1) {
    const [what, other] =
      expected.error === undefined ? (['unexpected', 'done'] as const) : (['missing', 'done'] as const);
    const group = groupOf([{ path: ['error'], what }])!;
    const tell = ({ error }: Side): unknown => (error === undefined ? other : { error: shown(error, mask) });
    return { kind: 'mismatched', group, expected: tell(expected), actual: tell(actual) };
  }
  const compared = (['writes', 'answer', 'effects'] as const).filter(
    (part) => actual[part] !== undefined && expected[part] !== undefined,
  );
  const pick = (side: Side): Record<string, unknown> =>
    Object.fromEntries(compared.map((part) => [part, settled(side[part], alike, [part])]));
  const [one, other] = [pick(expected), pick(actual)];
  const found = differences(one, other);
  const group = groupOf(found);
  if (group === undefined) return { kind: 'matched' };
  const whole = { expected: masked(one, mask), actual: masked(other, mask) };
  if (JSON.stringify(whole).length <= 2 * mostBytes) return { kind: 'mismatched', group, ...whole };
  const parts = (from: unknown): unknown =>
    Object.fromEntries(
      found
        .slice(0, 20)
        .map(({ path }) => [normalised(path), JSON.stringify(masked(at(from, path), mask, path)).slice(0, 400)]),
    );
  return { kind: 'mismatched', group, expected: parts(one), actual: parts(other) };
}

/** The name and code of an error are its kind; its message may hold anything. */
function shown(error: NonNullable<Side['error']>, mask: Mask): unknown {
  return { name: error.name, code: error.code, message: masked(error.message, mask, ['error', 'message']) };
}

function at(value: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>(
    (current, part) =>
      typeof current === 'object' && current !== null ? (current as Record<string, unknown>)[part] : undefined,
    value,
  );
}
