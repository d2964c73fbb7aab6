import { TurnoutError } from '../errors/index.ts';
import { decodeEnvelope, effectKeyOf, parseRoutes, validateEventData } from '../event/index.ts';
import type {
  AnyEventDefinition,
  Envelope,
  EventDefinition,
  Message,
  Reaction,
  Stamp,
  TurnoutEvent,
} from '../event/index.ts';
import type { ConsumerDefinition } from './define-consumer.ts';

/** A message, as far as it could be read. */
export type ReadMessage =
  | {
      readonly kind: 'event';
      readonly envelope: Envelope;
      readonly stamp: Stamp | undefined;
      readonly effectKey: string;
    }
  /** Its envelope or its routes can't be read; `effectKey` is made up if need be. */
  | {
      readonly kind: 'malformed';
      readonly error: TurnoutError;
      readonly envelope: Envelope | undefined;
      readonly effectKey: string;
      readonly source: string;
    };

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Reads envelope and route of a message for one consumer. Never throws: what can't be read is told. */
export function readMessage(
  consumer: string,
  topic: string,
  partition: number,
  offset: bigint,
  message: Message,
): ReadMessage {
  let envelope: Envelope | undefined;
  try {
    envelope = decodeEnvelope(topic, message);
    if (!uuidPattern.test(envelope.id)) {
      throw new TurnoutError(
        'TURNOUT_ENVELOPE_MALFORMED',
        `A message of topic ${topic} has ce_id ${JSON.stringify(envelope.id)}, which is no UUID.`,
        {
          details: { topic, field: 'ce_id' },
        },
      );
    }
    const stamps = envelope.routes === undefined ? [] : parseRoutes(envelope.routes);
    return {
      kind: 'event',
      envelope,
      stamp: stamps.find((each) => each.consumer === consumer),
      effectKey: effectKeyOf(consumer, envelope.id),
    };
  } catch (error) {
    if (!(error instanceof TurnoutError)) throw error;
    const known = error.code === 'TURNOUT_ROUTES_MALFORMED';
    return {
      kind: 'malformed',
      error,
      envelope: known ? envelope : undefined,
      effectKey: effectKeyOf(consumer, known ? envelope!.id : `malformed.${topic}.${partition}.${offset}`),
      source: message.headers['ce_source'] ?? 'unknown',
    };
  }
}

/** Handlers by event type. */
export interface HandlerTable {
  find(type: string, version: number): Reaction<never> | undefined;
  standing(type: string, version: number): 'present' | 'other-version' | 'none';
  /** Whether events of the type without a route for the consumer are only observed. */
  isInSwitchover(type: string): boolean;
  readonly topics: readonly string[];
}

export function handlerTable({
  handlers,
  inSwitchover,
}: Pick<ConsumerDefinition, 'handlers' | 'inSwitchover'>): HandlerTable {
  const byType = new Map(handlers.map((handler) => [`${handler.event.name} ${handler.event.version}`, handler]));
  const handled = new Set(handlers.map((handler) => handler.event.name));
  const switched = new Set(inSwitchover.map((event) => event.name));
  const events: AnyEventDefinition[] = [...handlers.map((handler) => handler.event), ...inSwitchover];
  return {
    find: (type, version) => byType.get(`${type} ${version}`),
    standing(type, version) {
      if (byType.has(`${type} ${version}`)) return 'present';
      return handled.has(type) ? 'other-version' : 'none';
    },
    isInSwitchover: (type) => switched.has(type),
    topics: [...new Set(events.map((event) => event.topic.name))].sort(),
  };
}

/** Whether the later events of this one's key have to wait for it. */
export function isOrdered(definition: AnyEventDefinition, key: string | null): key is string {
  return definition.order === 'key' && key !== null;
}

/** Parses and checks the data, and gives the event as handlers get it. Throws TURNOUT_EVENT_DATA_INVALID. */
export async function toEvent(definition: AnyEventDefinition, envelope: Envelope): Promise<TurnoutEvent<never>> {
  const { id, type, version, source, topic, key, time, payload, headers } = envelope;
  let given: unknown;
  try {
    given = JSON.parse(payload);
  } catch (error) {
    throw new TurnoutError('TURNOUT_EVENT_DATA_INVALID', `Event ${type}: data: is not JSON.`, {
      details: { type, path: 'data' },
      cause: error,
    });
  }
  const data = await validateEventData(definition as unknown as EventDefinition<string, unknown, never>, given);
  return { id, type, version, source, topic, key, time, headers, data };
}

/** Why an event that can be read can't have its effect here. */
export function parkError(
  why: 'refused' | 'handler-missing' | 'version-unhandled',
  { type, version, refused }: Envelope,
): TurnoutError {
  if (why === 'refused') {
    return new TurnoutError('TURNOUT_EVENT_REFUSED', `The broker refused an event of type ${type}: ${refused}.`, {
      details: { type, refused },
    });
  }
  return new TurnoutError('TURNOUT_EVENT_UNHANDLED', `There is no handler for ${type} v${version}.`, {
    details: { type, version },
  });
}
