import type { StandardSchemaV1 } from '@standard-schema/spec';
import { TurnoutError } from '../errors/index.ts';
import type { EventDefinition } from './define-event.ts';

/**
 * Checks data against the schema of its event type and gives what is stored. Throws TURNOUT_EVENT_DATA_INVALID with
 * the path of the bad field, also for what a round trip through JSON would change (a Date, undefined in an array, NaN).
 */
export async function validateEventData<Input, Data>(
  definition: EventDefinition<string, Input, Data>,
  input: Input,
): Promise<Data> {
  const result = await definition.schema['~standard'].validate(input);
  if (result.issues !== undefined) {
    const issue = result.issues[0];
    const path = issue === undefined ? 'data' : ['data', ...pathOf(issue)].join('.');
    throw invalidEventData(definition.name, path, issue?.message ?? 'does not fit the schema');
  }
  const lost = firstNotJson(result.value, 'data', 0);
  if (lost !== undefined) throw invalidEventData(definition.name, lost.path, lost.why);
  return result.value;
}

/** TURNOUT_EVENT_DATA_INVALID. */
export function invalidEventData(type: string, path: string, why: string): TurnoutError {
  return new TurnoutError('TURNOUT_EVENT_DATA_INVALID', `Event ${type}: ${path}: ${why}.`, {
    details: { type, path, why },
  });
}

function pathOf(issue: StandardSchemaV1.Issue): string[] {
  return (issue.path ?? []).map((part) => String(typeof part === 'object' ? part.key : part));
}

interface Lost {
  readonly path: string;
  readonly why: string;
}

/** The first place where JSON would lose or change something, or where Postgres would refuse it. */
export function firstNotJson(value: unknown, path: string, depth: number): Lost | undefined {
  if (depth > 100) return { path, why: 'is nested too deeply, or in a circle' };
  switch (typeof value) {
    case 'boolean':
      return undefined;
    case 'number':
      return Number.isFinite(value) ? undefined : { path, why: `${value} is not a JSON number` };
    case 'string':
      if (value.includes('\0')) return { path, why: 'holds a NUL character, which Postgres can’t store' };
      return value.isWellFormed() ? undefined : { path, why: 'holds half of a surrogate pair' };
    case 'object':
      break;
    default:
      return { path, why: `a ${typeof value} is not JSON` };
  }
  if (value === null) return undefined;
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index++) {
      const lost = firstNotJson(value[index], `${path}.${index}`, depth + 1);
      if (lost !== undefined) return lost;
    }
    return undefined;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) {
    return {
      path,
      why: `a ${(prototype as { constructor?: { name?: string } }).constructor?.name ?? 'object with a prototype'} does not survive JSON`,
    };
  }
  for (const [key, member] of Object.entries(value)) {
    // A member that is undefined is left out by JSON, which is how optional fields are usually written.
    if (member === undefined) continue;
    const lost = firstNotJson(key, `${path}.${key}`, depth + 1) ?? firstNotJson(member, `${path}.${key}`, depth + 1);
    if (lost !== undefined) return lost;
  }
  return undefined;
}
