// What endpoints find in stage shadow, on its way to the database: gathered for a moment, and written after the answer, on a
// connection of its own. A call never waits for it and never fails by it; what can't be written is counted in the log and lost.
import type { Queryable } from '../../database/index.ts';
import { bucketOf, sampleOf } from '../../inbox/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import type { Comparison } from './compare-with.ts';
import { judge } from './judge.ts';
import type { Side } from './judge.ts';
import { watchedTables } from './watch.ts';
import { netWrites, readCaptured } from './writes.ts';
import type { WatchedTable } from './writes.ts';

/** One side of a comparison, as it was gathered. */
export interface Observed extends Omit<Side, 'writes'> {
  /** What the triggers have gathered; undefined: writes are not compared. */
  readonly captured?: string | undefined;
}

/** How one sampled call went. */
export type Finding =
  | { readonly kind: 'compared'; readonly expected: Observed; readonly actual: Observed }
  | { readonly kind: 'failed'; readonly why: string }
  | { readonly kind: 'skipped' };

interface Gathered {
  readonly effectKey: string;
  readonly eventType: string;
  readonly variant: string;
  readonly finding: Finding;
}

interface Called {
  readonly effectKey: string;
  readonly eventType: string;
  readonly at: number;
}

export interface Recorder {
  /** A call of stage shadow had its effect. */
  called(effectKey: string, eventType: string): void;
  found(gathered: Gathered): void;
}

const gatherMs = 100;
/** More than this that wait are dropped: memory is bounded. */
const mostWaiting = 2_000;
/** How long what is known of the watched tables is believed. */
const tablesMs = 30_000;
const mostVariants = 100;

export function shadowRecorder<Tx>(
  database: Queryable,
  consumer: string,
  comparison: Pick<Comparison<Tx>, 'alike' | 'mask' | 'compareColumns' | 'variants' | 'release'> | undefined,
  logger: Logger,
): Recorder {
  let calls: Called[] = [];
  let findings: Gathered[] = [];
  let writing: Promise<void> | undefined;
  let dropped = 0;
  let toldVariants = comparison === undefined;
  let tables: { readonly at: number; readonly known: readonly WatchedTable[] } | undefined;
  const variantsSeen = new Set<string>();
  const warn = rarely(logger);

  function soon(): void {
    if (writing !== undefined) return;
    writing = new Promise<void>((resolve) => {
      // It must not keep a process from ending.
      setTimeout(() => void write().finally(resolve), gatherMs).unref();
    }).finally(() => {
      writing = undefined;
      if (calls.length + findings.length > 0) soon();
    });
  }

  async function write(): Promise<void> {
    const [owed, found] = [calls, findings];
    [calls, findings] = [[], []];
    try {
      if (dropped > 0) warn('Findings of stage shadow came faster than they could be written.', { consumer, dropped });
      dropped = 0;
      const gathered = { calls: owed.map(callRow), ...(await judged(found)) };
      const variants = toldVariants ? {} : { variants: comparison!.variants };
      await database.query('select turnout.record_shadow($1, $2, $3::jsonb)', [
        consumer,
        comparison?.release ?? '',
        JSON.stringify({ ...gathered, ...variants }),
      ]);
      toldVariants = true;
    } catch (error) {
      warn('What stage shadow found could not be written; it is lost.', {
        consumer,
        lost: owed.length + found.length,
        error,
      });
    }
  }

  function callRow({ effectKey, eventType, at }: Called): object {
    return { effectKey, eventType, ago: performance.now() - at, bucket: bucketOf(effectKey), sample: sampleOf(1) };
  }

  async function judged(found: readonly Gathered[]): Promise<{ counts: object[]; mismatches: object[] }> {
    const counts = new Map<string, Counts>();
    const mismatches = new Map<string, { count: number; readonly row: object }>();
    const known = found.some(({ finding }) => finding.kind === 'compared') ? await shapes() : [];
    for (const { effectKey, eventType, variant: given, finding } of found) {
      const variant = boundedVariant(given);
      const name = JSON.stringify([eventType, variant]);
      const count = counts.get(name) ?? { eventType, variant, matched: 0, mismatched: 0, failed: 0, skipped: 0 };
      counts.set(name, count);
      if (finding.kind !== 'compared') {
        count[finding.kind]++;
        if (finding.kind === 'failed')
          warn('A comparison failed; the call is as it was.', { consumer, effectKey, why: finding.why });
        continue;
      }
      try {
        const sides = [finding.expected, finding.actual].map((side) => sideOf(side, known)) as [Side, Side];
        const judgement = judge(...sides, comparison!.alike, comparison!.mask);
        count[judgement.kind]++;
        if (judgement.kind === 'matched') continue;
        const { group, expected, actual } = judgement;
        const place = JSON.stringify([group.fingerprint, eventType]);
        const before = mismatches.get(place);
        if (before !== undefined) before.count++;
        else mismatches.set(place, { count: 1, row: { ...group, eventType, effectKey, expected, actual } });
      } catch (error) {
        count.failed++;
        warn('A comparison failed; the call is as it was.', { consumer, effectKey, why: String(error) });
      }
    }
    return {
      counts: [...counts.values()],
      mismatches: [...mismatches.values()].map(({ count, row }) => ({ ...row, count })),
    };
  }

  function sideOf({ captured, ...side }: Observed, known: readonly WatchedTable[]): Side {
    if (captured === undefined || side.error !== undefined) return side;
    const read = readCaptured(captured);
    if (read === undefined)
      throw new Error(`What was written is ${captured === 'failed' ? 'not known' : 'too large to compare'}.`);
    return { ...side, writes: netWrites(read, known, comparison!.compareColumns) };
  }

  async function shapes(): Promise<readonly WatchedTable[]> {
    if (tables === undefined || performance.now() - tables.at > tablesMs)
      tables = { at: performance.now(), known: await watchedTables(database) };
    return tables.known;
  }

  function boundedVariant(variant: string): string {
    if (variantsSeen.size < mostVariants) variantsSeen.add(variant);
    return variantsSeen.has(variant) ? variant : 'other';
  }

  return {
    called(effectKey, eventType) {
      if (calls.length >= mostWaiting) dropped++;
      else calls.push({ effectKey, eventType, at: performance.now() });
      soon();
    },
    found(gathered) {
      if (findings.length >= mostWaiting) dropped++;
      else findings.push(gathered);
      soon();
    },
  };
}

interface Counts {
  readonly eventType: string;
  readonly variant: string;
  matched: number;
  mismatched: number;
  failed: number;
  skipped: number;
}

/** The same line once a minute: what goes wrong here goes wrong with every call. */
function rarely(logger: Logger): Logger['warn'] {
  const told = new Map<string, number>();
  return (message, fields) => {
    if (performance.now() - (told.get(message) ?? Number.NEGATIVE_INFINITY) < 60_000) return;
    told.set(message, performance.now());
    logger.warn(message, fields);
  };
}
