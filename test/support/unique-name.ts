import { randomBytes } from 'node:crypto';

/**
 * A name nobody else uses, for topics, groups and databases: lower-case letters, digits and `_` after the prefix.
 *
 * @example const topic = uniqueName('orders');  // 'orders_9f31c2ab44d0'
 */
export function uniqueName(prefix: string): string {
  return `${prefix}_${randomBytes(6).toString('hex')}`;
}
