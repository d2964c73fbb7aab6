import { rebaseRelay } from '../../relay/index.ts';
import type { TurnoutConfig } from '../../config.ts';
import { need } from '../validate-config.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';

/** Starts new generations after a database was put back or copied. */
export async function rebase(loaded: TurnoutConfig, reason: string): Promise<Report> {
  const { database } = need(loaded, 'relay rebase', 'database');
  const sources = await rebaseRelay(database, reason);
  const copied = sources.some((each) => each.copied);
  const text = [
    table(
      ['source', 'generation'],
      sources.map((each) => [each.source, String(each.generation)]),
    ),
    copied
      ? 'The database was copied from another cluster: everything in the outbox is published again, once a relay runs.'
      : 'The relay counts from 1 in these generations; start it.',
  ].join('\n');
  return { data: { sources: sources.map(({ source, generation }) => ({ source, generation })), copied }, text };
}
