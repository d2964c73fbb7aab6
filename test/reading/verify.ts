// Compares what was committed with what lies in the topic.
import type { StoredMessage } from '../support/topic-reader.ts';

/** An event that was committed, and its place in the order of its key's locks. */
export interface Committed {
  readonly id: string;
  readonly key: string | null;
  readonly n: number | null;
}

/** What is wrong; all zero: nothing. */
export interface Violations {
  /** Committed and not in the topic, and numbers that nothing has. */
  lost: number;
  /** Repeats of an event that differ from its first appearance, and numbers that two events share. */
  doubled: number;
  /** Events that came before one that their key's locks had put before them, or whose number came out of turn. */
  outOfOrder: number;
  /** In the topic and never committed. */
  uncommitted: number;
  /** The first few, in words. */
  readonly examples: string[];
}

/** How often the topic repeats an event identically, which is allowed: at least once. */
export interface Verdict extends Violations {
  readonly repeated: number;
}

export function verify(committed: readonly Committed[], messages: readonly StoredMessage[]): Verdict {
  const violations: Violations = { lost: 0, doubled: 0, outOfOrder: 0, uncommitted: 0, examples: [] };
  const report = (kind: 'lost' | 'doubled' | 'outOfOrder' | 'uncommitted', what: string): void => {
    violations[kind]++;
    if (violations.examples.length < 5) violations.examples.push(what);
  };
  const known = new Map(committed.map((each) => [each.id, each]));
  const first = new Map<string, StoredMessage>();
  const lastNumber = new Map<string, bigint>();
  const lastOfKey = new Map<string, number>();
  const owner = new Map<string, string>();
  let repeated = 0;

  for (const message of messages) {
    const id = message.headers['ce_id'] ?? '';
    const seen = first.get(id);
    if (seen !== undefined) {
      if (contentOf(seen) === contentOf(message)) repeated++;
      else
        report(
          'doubled',
          `${id} is in partition ${seen.partition} as ${seen.headers['ce_sequence']} and in ${message.partition} as ${message.headers['ce_sequence']}`,
        );
      continue;
    }
    first.set(id, message);

    const [generation = '', number = ''] = (message.headers['ce_sequence'] ?? '').split('-');
    const counted = `${message.headers['ce_source']}/${generation}/${message.partition}`;
    const numbered = `${counted}/${number}`;
    if (owner.has(numbered))
      report('doubled', `${id} and ${owner.get(numbered)} are both number ${number} of partition ${message.partition}`);
    owner.set(numbered, id);
    const before = lastNumber.get(counted) ?? 0n;
    if (BigInt(number) !== before + 1n)
      report('outOfOrder', `number ${BigInt(number)} of partition ${message.partition} comes after ${before}`);
    if (BigInt(number) > before) lastNumber.set(counted, BigInt(number));

    const event = known.get(id);
    if (event === undefined) {
      report('uncommitted', `${id} was never committed`);
    } else if (event.key !== null && event.n !== null) {
      const last = lastOfKey.get(event.key) ?? 0;
      if (event.n !== last + 1) report('outOfOrder', `event ${event.n} of ${event.key} comes after ${last}`);
      lastOfKey.set(event.key, Math.max(last, event.n));
    }
  }
  for (const { id, key, n } of committed)
    if (!first.has(id)) report('lost', `${id} (event ${n} of ${key}) is not in the topic`);
  for (const [counted, last] of lastNumber) {
    for (let number = 1n; number <= last; number++) {
      if (!owner.has(`${counted}/${number.toString().padStart(20, '0')}`))
        report('lost', `number ${number} of ${counted} is missing`);
    }
  }
  return { ...violations, repeated };
}

function contentOf({ partition, key, value, headers }: StoredMessage): string {
  return JSON.stringify([partition, key, value, Object.entries(headers).sort(([a], [b]) => a.localeCompare(b))]);
}
