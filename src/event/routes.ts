import { TurnoutError } from '../errors/index.ts';

/** Which way one event goes to one consumer. */
export type Route = 'rpc' | 'event';

/** What one event was given for one consumer in switchover; written with the event, never computed again. */
export interface Stamp {
  readonly consumer: string;
  readonly route: Route;
  /** Which stage change it was stamped under; explains, decides nothing. */
  readonly epoch: number;
  /** For ordered switchovers: the dense count of this key's events, within a generation. */
  readonly turn: Turn | undefined;
}

/** A key's number and the generation it is counted in. */
export interface Turn {
  readonly generation: number;
  readonly number: number;
}

const entryPattern =
  /^([a-z0-9][a-z0-9._-]{0,99})=(rpc|event);epoch=(\d{1,15})(?:;generation=(\d{1,9});number=(\d{1,15}))?$/;

/**
 * Reads the text of the `routes` column and of the `turnout-routes` header, such as
 * `email=rpc;epoch=1, loyalty=event;epoch=3;generation=1;number=17`. Throws TURNOUT_ROUTES_MALFORMED.
 */
export function parseRoutes(text: string): Stamp[] {
  const stamps: Stamp[] = [];
  for (const entry of text.split(', ')) {
    const match = entryPattern.exec(entry);
    const [, consumer, route, epoch, generation, number] = match ?? [];
    if (consumer === undefined || stamps.some((stamp) => stamp.consumer === consumer)) {
      throw new TurnoutError(
        'TURNOUT_ROUTES_MALFORMED',
        `The routes ${JSON.stringify(text)} can't be read at ${JSON.stringify(entry)}.`,
        {
          details: { routes: text, entry },
        },
      );
    }
    stamps.push({
      consumer,
      route: route as Route,
      epoch: Number(epoch),
      turn: number === undefined ? undefined : { generation: Number(generation), number: Number(number) },
    });
  }
  return stamps;
}

/** The opposite of {@link parseRoutes}. */
export function formatRoutes(stamps: readonly Stamp[]): string {
  return stamps
    .map(({ consumer, route, epoch, turn }) => {
      const place = turn === undefined ? '' : `;generation=${turn.generation};number=${turn.number}`;
      return `${consumer}=${route};epoch=${epoch}${place}`;
    })
    .join(', ');
}

/** The dedupe id of one (event, consumer): Idempotency-Key over RPC, inbox key, job id. No `:` in it, and not an integer. */
export function effectKeyOf(consumer: string, eventId: string): string {
  return `${consumer}.${eventId}`;
}
