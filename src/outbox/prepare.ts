import { TurnoutError } from '../errors/index.ts';
import type { AnyEventDefinition, EventDefinition } from '../event/index.ts';
import { invalidEventData, isReservedHeader, validateEventData } from '../event/index.ts';

/** One event to be published. */
export interface PublishRequest {
  readonly definition: AnyEventDefinition;
  readonly data: unknown;
  /** A UUID; made by the database if it is missing. */
  readonly id?: string | undefined;
  /** The publisher's own headers; they travel with the event. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

/** A request that was checked, as `turnout.publish_events` takes it. */
export interface PreparedEvent {
  readonly id?: string;
  readonly type: string;
  readonly version: number;
  readonly key: string | null;
  readonly data: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
// A key is part of primary keys, and an entry of a Postgres index holds at most 2,704 bytes.
const maxKeyBytes = 1000;

/**
 * Checks what can be checked before anything is sent. Throws TURNOUT_EVENT_DATA_INVALID with the path of the bad
 * field, TURNOUT_KEY_MISSING, TURNOUT_PAYLOAD_TOO_LARGE; `details.index` says which of the requests it was.
 */
export async function prepareEvents(requests: readonly PublishRequest[]): Promise<PreparedEvent[]> {
  const prepared: PreparedEvent[] = [];
  const ids = new Set<string>();
  for (const [index, request] of requests.entries()) {
    try {
      const event = await prepareEvent(request);
      const id = event.id?.toLowerCase();
      if (id !== undefined && ids.has(id))
        throw invalidEventData(event.type, 'id', 'is also the id of another event published here');
      if (id !== undefined) ids.add(id);
      prepared.push(event);
    } catch (error) {
      throw requests.length > 1 && error instanceof TurnoutError ? ofRequest(index, error) : error;
    }
  }
  return prepared;
}

function ofRequest(index: number, error: TurnoutError): TurnoutError {
  return new TurnoutError(
    error.code,
    `Of the events to be published, number ${index + 1} was refused: ${JSON.stringify(error.details['path'] ?? error.code)}.`,
    {
      details: { ...error.details, index },
      cause: error,
    },
  );
}

async function prepareEvent({ definition, data, id, headers }: PublishRequest): Promise<PreparedEvent> {
  const { name: type, version } = definition;
  const valid = await validateEventData(definition as EventDefinition, data);
  // A message without a value is a tombstone: compacted topics delete by it.
  if (valid === null || valid === undefined) throw invalidEventData(type, 'data', 'an event must have data');
  if (id !== undefined && !uuidPattern.test(id))
    throw invalidEventData(type, 'id', `${JSON.stringify(id)} is not a UUID`);
  checkHeaders(type, headers);
  // The broker's limit is on the whole message, and what it refuses could then only be replaced.
  const bytes = Buffer.byteLength(JSON.stringify(valid)) + (headers ? Buffer.byteLength(JSON.stringify(headers)) : 0);
  if (bytes > definition.topic.maxBytes) {
    const details = { type, bytes, maxBytes: definition.topic.maxBytes };
    const what = `The payload of ${type} has ${bytes} bytes with its headers; its topic takes ${definition.topic.maxBytes}.`;
    throw new TurnoutError('TURNOUT_PAYLOAD_TOO_LARGE', what, { details });
  }
  return {
    type,
    version,
    key: keyOf(definition, valid),
    data: valid,
    ...(id === undefined ? {} : { id }),
    ...(headers === undefined ? {} : { headers }),
  };
}

function keyOf(definition: AnyEventDefinition, data: unknown): string | null {
  const key: unknown = (definition.key as ((data: unknown) => unknown) | undefined)?.(data);
  if (definition.key === undefined) return null;
  if (key === undefined || key === null || key === '') {
    const what = `The key of event ${definition.name} came out as ${JSON.stringify(key)}.`;
    throw new TurnoutError('TURNOUT_KEY_MISSING', what, { details: { type: definition.name, path: 'key' } });
  }
  if (typeof key !== 'string') throw invalidEventData(definition.name, 'key', `is a ${typeof key}, not a string`);
  if (key.includes('\0') || !key.isWellFormed())
    throw invalidEventData(definition.name, 'key', 'holds a character that can’t be stored');
  if (Buffer.byteLength(key) > maxKeyBytes)
    throw invalidEventData(definition.name, 'key', `is longer than ${maxKeyBytes} bytes`);
  return key;
}

function checkHeaders(type: string, headers: Readonly<Record<string, unknown>> | undefined): void {
  for (const [name, value] of Object.entries(headers ?? {})) {
    const path = `headers.${name}`;
    if (name === '') throw invalidEventData(type, path, 'a header needs a name');
    if (isReservedHeader(name)) throw invalidEventData(type, path, 'is written by Turnout itself');
    if (typeof value !== 'string') throw invalidEventData(type, path, `is a ${typeof value}, not a string`);
    for (const text of [name, value]) {
      if (text.includes('\0') || !text.isWellFormed())
        throw invalidEventData(type, path, 'holds a character that can’t be stored');
    }
  }
}
