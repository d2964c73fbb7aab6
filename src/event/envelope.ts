import { TurnoutError } from '../errors/index.ts';

/**
 * An event as it is kept in the outbox and carried by Kafka, before its payload is parsed and checked.
 * The payload is the JSON text that the publisher stored.
 */
export interface Envelope {
  readonly id: string;
  readonly type: string;
  readonly version: number;
  readonly source: string;
  readonly topic: string;
  readonly key: string | null;
  readonly time: Date;
  readonly payload: string;
  /** Place in the outbox; undefined behind a publisher that does not write it (Debezium). */
  readonly seq: bigint | undefined;
  /** Dense count within (source, generation, topic, partition); undefined behind a publisher that does not write it. */
  readonly sequence: Sequence | undefined;
  /** The text of `turnout-routes`, not yet parsed; undefined if no consumer was in switchover. */
  readonly routes: string | undefined;
  /** The publisher's own headers. */
  readonly headers: Readonly<Record<string, string>>;
  /** Why the broker refused the real message, if this is its placeholder. */
  readonly refused: string | undefined;
}

export interface Sequence {
  readonly generation: number;
  readonly number: bigint;
}

/** A message as brokers carry it. */
export interface Message {
  readonly key: string | null;
  readonly value: Buffer | null;
  readonly headers: Readonly<Record<string, string>>;
}

const reserved = new Set([
  'ce_specversion',
  'ce_id',
  'ce_type',
  'ce_source',
  'ce_time',
  'ce_partitionkey',
  'ce_sequence',
  'content-type',
  'turnout-version',
  'turnout-seq',
  'turnout-routes',
  'turnout-refused',
]);

/** Whether a publisher's own header may have this name. */
export function isReservedHeader(name: string): boolean {
  return reserved.has(name.toLowerCase());
}

/** CloudEvents 1.0 in Kafka's binary mode. */
export function encodeEnvelope(envelope: Envelope): Message {
  const headers: Record<string, string> = {
    ce_specversion: '1.0',
    ce_id: envelope.id,
    ce_type: envelope.type,
    ce_source: envelope.source,
    ce_time: envelope.time.toISOString(),
    'content-type': 'application/json',
    'turnout-version': String(envelope.version),
  };
  if (envelope.key !== null) headers['ce_partitionkey'] = envelope.key;
  if (envelope.sequence !== undefined) headers['ce_sequence'] = formatSequence(envelope.sequence);
  if (envelope.seq !== undefined) headers['turnout-seq'] = envelope.seq.toString();
  if (envelope.routes !== undefined) headers['turnout-routes'] = envelope.routes;
  if (envelope.refused !== undefined) headers['turnout-refused'] = envelope.refused;
  for (const name in envelope.headers) headers[name] = envelope.headers[name]!;
  return { key: envelope.key, value: Buffer.from(envelope.payload), headers };
}

/**
 * Reads a message of a topic. A publisher that is not Turnout's relay (Debezium's outbox router) may leave out sequence
 * and place. Throws TURNOUT_ENVELOPE_MALFORMED.
 */
export function decodeEnvelope(topic: string, message: Message): Envelope {
  const header = message.headers;
  const own: Record<string, string> = {};
  for (const name in header) if (!reserved.has(name)) own[name] = header[name]!;
  const time = new Date(required(topic, header, 'ce_time'));
  if (Number.isNaN(time.getTime())) throw malformed(topic, 'ce_time', header['ce_time']);
  if (message.value === null) throw malformed(topic, 'value', null);
  return {
    id: required(topic, header, 'ce_id'),
    type: required(topic, header, 'ce_type'),
    version: Number(header['turnout-version'] ?? '1'),
    source: required(topic, header, 'ce_source'),
    topic,
    key: message.key,
    time,
    payload: message.value.toString(),
    seq: header['turnout-seq'] === undefined ? undefined : wholeNumber(topic, 'turnout-seq', header['turnout-seq']),
    sequence: header['ce_sequence'] === undefined ? undefined : parseSequence(topic, header['ce_sequence']),
    routes: header['turnout-routes'],
    headers: own,
    refused: header['turnout-refused'],
  };
}

/** Zero-padded, so that it sorts as text as CloudEvents demands of `sequence`: `000001-00000000000000000042`. */
export function formatSequence(sequence: Sequence): string {
  return `${String(sequence.generation).padStart(6, '0')}-${sequence.number.toString().padStart(20, '0')}`;
}

function parseSequence(topic: string, text: string): Sequence {
  const match = /^(\d{6,9})-(\d{20})$/.exec(text);
  if (match === null) throw malformed(topic, 'ce_sequence', text);
  return { generation: Number(match[1]), number: BigInt(match[2]!) };
}

function required(topic: string, headers: Readonly<Record<string, string>>, name: string): string {
  const value = headers[name];
  if (value === undefined || value === '') throw malformed(topic, name, value);
  return value;
}

function wholeNumber(topic: string, name: string, text: string): bigint {
  if (!/^\d{1,19}$/.test(text)) throw malformed(topic, name, text);
  return BigInt(text);
}

function malformed(topic: string, field: string, value: unknown): TurnoutError {
  return new TurnoutError(
    'TURNOUT_ENVELOPE_MALFORMED',
    `A message of topic ${topic} has ${field} ${JSON.stringify(value)}.`,
    {
      details: { topic, field },
    },
  );
}
