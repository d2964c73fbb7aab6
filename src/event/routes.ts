import { TurnoutError } from '../errors/index.ts';

/** Which way one event goes to one consumer. */
export type Route = 'rpc' | 'event';

/** What one event was given for one consumer in switchover; written with the event, never computed again. */
export interface Stamp {
  readonly consumer: string;
  readonly route: Route;
  /** Which stage change it was stamped under; explains, decides nothing. */
  readonly epoch: number;
  /** Stamped in stage `shadow`: the call is made, and what the event path would have done may be compared with it. */
  readonly shadow: boolean;
  /** For ordered switchovers: the dense count of this key's events, within a generation. */
  readonly turn: Turn | undefined;
}

/** A key's number and the generation it is counted in. */
export interface Turn {
  readonly generation: number;
  readonly number: number;
}

const entryPattern = /^([a-z0-9][a-z0-9._-]{0,99})=(rpc|event)((?:;[a-z][a-z0-9-]{0,49}=[^;,=]{0,200})+)$/;
const epochPattern = /^\d{1,15}$/;
const generationPattern = /^\d{1,9}$/;

/**
 * Reads the text of the `routes` column and of the `turnout-routes` header, such as
 * `email=rpc;epoch=1;shadow=1, loyalty=event;epoch=3;generation=1;number=17`. Parameters that are not known here are left out, so
 * that a newer publisher may write more. Throws TURNOUT_ROUTES_MALFORMED.
 */
export function parseRoutes(text: string): Stamp[] {
  const stamps: Stamp[] = [];
  for (const entry of text.split(', ')) {
    const stamp = stampOf(entry);
    if (stamp === undefined || stamps.some(({ consumer }) => consumer === stamp.consumer)) {
      throw new TurnoutError(
        'TURNOUT_ROUTES_MALFORMED',
        `The routes ${JSON.stringify(text)} can't be read at ${JSON.stringify(entry)}.`,
        {
          details: { routes: text, entry },
        },
      );
    }
    stamps.push(stamp);
  }
  return stamps;
}

function stampOf(entry: string): Stamp | undefined {
  const [, consumer, route, parameters] = entryPattern.exec(entry) ?? [];
  if (consumer === undefined || parameters === undefined) return undefined;
  const pairs = parameters
    .slice(1)
    .split(';')
    .map((each) => each.split('=') as [string, string]);
  const values = new Map(pairs);
  if (values.size < pairs.length) return undefined;
  const [epoch, generation, number, shadow] = ['epoch', 'generation', 'number', 'shadow'].map((name) =>
    values.get(name),
  );
  // What decides is read strictly: a number that is left out or spoilt must not make an ordered event an unordered one.
  if (epoch === undefined || !epochPattern.test(epoch)) return undefined;
  if ((generation === undefined) !== (number === undefined)) return undefined;
  if (generation !== undefined && !generationPattern.test(generation)) return undefined;
  if (number !== undefined && !epochPattern.test(number)) return undefined;
  return {
    consumer,
    route: route as Route,
    epoch: Number(epoch),
    shadow: shadow === '1',
    turn: number === undefined ? undefined : { generation: Number(generation), number: Number(number) },
  };
}

/** The opposite of {@link parseRoutes}. */
export function formatRoutes(stamps: readonly Stamp[]): string {
  return stamps
    .map(({ consumer, route, epoch, shadow, turn }) => {
      const place = turn === undefined ? '' : `;generation=${turn.generation};number=${turn.number}`;
      return `${consumer}=${route};epoch=${epoch}${shadow ? ';shadow=1' : ''}${place}`;
    })
    .join(', ');
}

/** The dedupe id of one (event, consumer): Idempotency-Key over RPC, inbox key, job id. No `:` in it, and not an integer. */
export function effectKeyOf(consumer: string, eventId: string): string {
  return `${consumer}.${eventId}`;
}
