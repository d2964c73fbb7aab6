// Stage shadow in the consumer's process: it notes that the copies come, and whether they could have had their effect. It costs nothing
// for other messages, and one statement a batch for these, before the position moves past them: after a crash they come again, and
// what was noted twice is noted once. If it can't be noted, the consumer goes on.
import type { Database } from '../database/index.ts';
import { isTurnoutError } from '../errors/index.ts';
import { effectKeyOf, parseRoutes } from '../event/index.ts';
import type { Stamp } from '../event/index.ts';
import { bucketOf, deleteOldShadow, recordArrivals, sampleOf } from '../inbox/index.ts';
import type { ShadowArrival } from '../inbox/index.ts';
import { sleep } from '../lifecycle/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import { isOrdered, parkError, toEvent } from './read-event.ts';
import type { HandlerTable, ReadMessage } from './read-event.ts';
import type { SourceMessage, TopicPartition } from './source.ts';

export interface ShadowArrivals {
  /** Looks at a message that had nothing to do here but be observed. */
  look(message: SourceMessage, read: ReadMessage): Promise<void>;
  /** To be called before the position moves past what was looked at. Never rejects. */
  note(): Promise<void>;
}

/** `share`: of the effects, 0 to 1; the endpoint's part is matched to it by the report. */
export function shadowArrivals(
  { database, name, table, logger }: { database: Database; name: string; table: HandlerTable; logger: Logger },
  { topic, partition }: TopicPartition,
  share: number,
): ShadowArrivals {
  const sample = sampleOf(share);
  let arrivals: ShadowArrival[] = [];
  let hasWarned = false;

  async function look(message: SourceMessage, read: ReadMessage): Promise<void> {
    const shadowed = read.kind === 'event' ? read.stamp : stampOf(name, message);
    if (shadowed?.shadow !== true) return;
    const effectKey = read.kind === 'event' ? read.effectKey : effectKeyOf(name, message.headers['ce_id'] ?? '');
    const bucket = bucketOf(effectKey);
    if (bucket >= sample) return;
    const { envelope } = read;
    const time = envelope?.time ?? new Date(message.headers['ce_time'] ?? '');
    if (Number.isNaN(time.getTime())) return;
    const definition = envelope === undefined ? undefined : table.find(envelope.type, envelope.version)?.event;
    const isPlaced =
      envelope !== undefined &&
      (shadowed.turn !== undefined || (definition !== undefined && isOrdered(definition, envelope.key)));
    arrivals.push({
      effectKey,
      eventType: envelope?.type ?? message.headers['ce_type'] ?? 'unknown',
      source: envelope?.source ?? message.headers['ce_source'] ?? 'unknown',
      topic,
      partition,
      offset: message.offset.toString(),
      key: isPlaced ? envelope.key : null,
      generation: isPlaced ? (shadowed.turn?.generation ?? null) : null,
      place: isPlaced ? ((shadowed.turn?.number ?? envelope.seq)?.toString() ?? null) : null,
      epoch: shadowed.epoch,
      occurredAt: time.toISOString(),
      problem: await problemOf(read, table),
      bucket,
      sample,
    });
  }

  async function note(): Promise<void> {
    if (arrivals.length === 0) return;
    const noted = arrivals;
    arrivals = [];
    try {
      await recordArrivals(database, name, noted);
    } catch (error) {
      if (!hasWarned)
        logger.warn('It can’t be noted that events of stage shadow have come; the report will miss them.', {
          consumer: name,
          topic,
          partition,
          error,
        });
      hasWarned = true;
    }
  }

  return { look, note };
}

/** The stamp of a message whose envelope can't be read, as far as its headers tell. */
function stampOf(consumer: string, { headers }: SourceMessage): Stamp | undefined {
  const { 'turnout-routes': routes, ce_id: id } = headers;
  if (routes === undefined || id === undefined) return undefined;
  try {
    return parseRoutes(routes).find((stamp) => stamp.consumer === consumer);
  } catch {
    return undefined;
  }
}

/** Why an event could not have had its effect here. */
async function problemOf(read: ReadMessage, table: HandlerTable): Promise<string | null> {
  try {
    if (read.kind === 'malformed') throw read.error;
    const { envelope } = read;
    if (envelope.refused !== undefined) throw parkError('refused', envelope);
    const reaction = table.find(envelope.type, envelope.version);
    if (reaction === undefined) throw parkError('handler-missing', envelope);
    await toEvent(reaction.event, envelope);
    return null;
  } catch (error) {
    if (!isTurnoutError(error)) return 'UNKNOWN';
    const place = error.details['path'] ?? error.details['field'];
    return typeof place === 'string' ? `${error.code}: ${place}` : error.code;
  }
}

const forgetEveryMs = 60_000;

/** Removes what stage shadow found longer ago than it is kept, until `signal` is aborted. Never rejects. */
export async function forgetOldShadow(
  database: Database,
  consumer: string,
  logger: Logger,
  signal: AbortSignal,
): Promise<void> {
  while (await sleep(forgetEveryMs, signal)) {
    try {
      while (!signal.aborted && (await deleteOldShadow(database, consumer)) > 0);
    } catch (error) {
      logger.warn('What stage shadow found long ago could not be removed; it is tried again.', { consumer, error });
    }
  }
}
