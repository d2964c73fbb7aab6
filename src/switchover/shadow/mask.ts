import { createHmac, randomBytes } from 'node:crypto';
import { isPlainName, matches } from './paths.ts';
import type { Path, Pattern } from './paths.ts';

/**
 * What examples may hold of values: their type, their length, and a short hash by which equal ones are recognised. The hash has a
 * key that is made when the process starts and is written nowhere: nobody who reads the table can try out values.
 */
export interface Mask {
  /** Places whose values are kept as they are. */
  readonly show: readonly Pattern[];
  readonly key: Buffer;
}

export function maskKey(): Buffer {
  return randomBytes(16);
}

/** Masks a value with all it holds. Booleans, null and the names that code has chosen are kept. */
export function masked(value: unknown, mask: Mask, path: Path = []): unknown {
  if (mask.show.some((pattern) => matches(pattern, path))) return value;
  if (typeof value === 'string') return `<string ${value.length} ${hashOf(value, mask)}>`;
  if (typeof value === 'number' || typeof value === 'bigint') return `<number ${hashOf(String(value), mask)}>`;
  if (Array.isArray(value)) return value.map((each, index) => masked(each, mask, [...path, String(index)]));
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(
      Object.entries(value).map(([name, member]) => [
        name.split('.').every(isPlainName) ? name : `<name ${hashOf(name, mask)}>`,
        masked(member, mask, [...path, name]),
      ]),
    );
  }
  return value ?? null;
}

function hashOf(text: string, { key }: Mask): string {
  return createHmac('sha256', key).update(text).digest('hex').slice(0, 8);
}
