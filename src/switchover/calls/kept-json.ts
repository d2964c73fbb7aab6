/**
 * A value as JSON, for those who look at it later: a bigint as its digits. Undefined for what is no JSON, such as a cycle: an effect
 * that has happened must not fail since its answer can't be kept.
 */
export function keptJson(value: unknown): string | undefined {
  try {
    return JSON.stringify(value, (_name, each: unknown) => (typeof each === 'bigint' ? each.toString() : each));
  } catch {
    return undefined;
  }
}
