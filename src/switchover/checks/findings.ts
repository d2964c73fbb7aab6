// What one check says, in its few shapes, and the words for numbers.

export type CheckVerdict = 'ready' | 'not-ready' | 'inconclusive';

/** What one check found. */
export interface Finding {
  readonly check: string;
  readonly verdict: CheckVerdict;
  /** What was seen; null: nothing. */
  readonly value: number | string | null;
  /** What it is held against; null: nothing. */
  readonly limit: number | string | null;
  readonly why: string;
  /** What to do; empty for a check that passed. */
  readonly remedy: string;
}

export const aDayMs = 86_400_000;

export function passed(check: string, value: Finding['value'], limit: Finding['limit'], why: string): Finding {
  return { check, verdict: 'ready', value, limit, why, remedy: '' };
}

export function not(
  check: string,
  value: Finding['value'],
  limit: Finding['limit'],
  why: string,
  remedy: string,
): Finding {
  return { check, verdict: 'not-ready', value, limit, why, remedy };
}

export function unknown(
  check: string,
  why: string,
  remedy: string,
  value: Finding['value'] = null,
  limit: Finding['limit'] = null,
): Finding {
  return { check, verdict: 'inconclusive', value, limit, why, remedy };
}

export function yesOrNo(
  check: string,
  is: boolean,
  { yes, no, remedy }: { yes: string; no: string; remedy: string },
): Finding {
  return is ? passed(check, 'yes', 'yes', yes) : not(check, 'no', 'yes', no, remedy);
}

export function atMost(
  check: string,
  value: number,
  limit: number,
  { what, remedy }: { what: string; remedy: string },
): Finding {
  const why = `${value} ${what}`;
  return value <= limit ? passed(check, value, limit, why) : not(check, value, limit, why, remedy);
}

export function percent(value: number): string {
  return `${value < 10 ? value.toFixed(2) : value.toFixed(0)} %`;
}

/** A time as people say it. */
export function duration(ms: number): string {
  if (ms < 120_000) return `${Math.round(ms / 1_000)} s`;
  if (ms < 2 * 3_600_000) return `${Math.round(ms / 60_000)} min`;
  return ms < 2 * aDayMs ? `${Math.round(ms / 3_600_000)} h` : `${Math.round(ms / aDayMs)} days`;
}
