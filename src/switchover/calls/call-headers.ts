// What goes with a call and what comes back, in HTTP headers. Names in lower case; HTTP does not mind.
//
//   request                                          answer
//   idempotency-key     "email.7d9f…"                turnout-outcome        applied | rejected | skipped | dead | duplicate
//   turnout-consumer    email                        turnout-first-outcome  rejected | skipped | dead   with duplicate
//   turnout-event-id, -type, -source, -topic         turnout-last-number    1.16                        with 425
//                                                    turnout-error          TURNOUT_…                   when the gate itself refuses
//   turnout-event-key   percent-encoded, if any      turnout-answer       none         nobody answered: it came as an event
//   turnout-event-time  2026-11-20T10:00:00.123Z
//   turnout-key-number  1.17   generation and number, of ordered switchovers
//   turnout-shadow      1      of calls that were stamped in stage shadow; with them, unless it is too long,
//   turnout-event-data  base64url of {"version": 1, "data": {…}}, so that the event's handler can be compared
import { TurnoutError } from '../../errors/index.ts';
import { effectKeyOf } from '../../event/index.ts';
import type { Turn, TurnoutEvent } from '../../event/index.ts';

export type AnsweredOutcome = 'applied' | 'rejected' | 'skipped' | 'dead' | 'duplicate';

const outcomes: readonly string[] = ['applied', 'rejected', 'skipped', 'dead', 'duplicate'];

/** The outcome that an answer carries, if it is one. A repeat of what was given up is no `duplicate` of anything: it says how it ended. */
export function readOutcome(headers: Readonly<Record<string, string>>): AnsweredOutcome | undefined {
  const outcome = headers['turnout-outcome']?.trim();
  if (outcome === undefined || !outcomes.includes(outcome)) return undefined;
  const first = headers['turnout-first-outcome']?.trim();
  if (outcome === 'duplicate' && (first === 'skipped' || first === 'dead')) return first;
  return outcome as AnsweredOutcome;
}

/** Whether the effect was not had, and won't be: refused by the handler, or given up. `status` tells it of a repeat. */
export function isRejected(outcome: AnsweredOutcome, status: number): boolean {
  return outcome === 'duplicate' ? status >= 400 : outcome !== 'applied';
}

export function formatTurn({ generation, number }: Turn): string {
  return `${generation}.${number}`;
}

/** `1.17` as generation 1, number 17; undefined if it is not like that. */
export function parseTurn(text: string | undefined): Turn | undefined {
  const match = /^(\d{1,9})\.(\d{1,15})$/.exec(text?.trim() ?? '');
  return match === null ? undefined : { generation: Number(match[1]), number: Number(match[2]) };
}

/** Proxies and servers commonly take 8 kB for a header; above this length the data stays away, and nothing is compared. */
const maxEventDataLength = 6_000;

/** The headers of a call for one event. With `shadow` they carry its data too. */
export function callHeaders(
  consumer: string,
  event: TurnoutEvent,
  turn: Turn | undefined,
  { shadow = false }: { readonly shadow?: boolean } = {},
): Record<string, string> {
  const headers: Record<string, string> = {
    // A string of Structured Fields, as the Idempotency-Key draft has it.
    'idempotency-key': `"${effectKeyOf(consumer, event.id)}"`,
    'turnout-consumer': consumer,
    'turnout-event-id': event.id,
    'turnout-event-type': event.type,
    'turnout-event-source': event.source,
    'turnout-event-topic': event.topic,
    'turnout-event-time': event.time.toISOString(),
  };
  if (event.key !== null) headers['turnout-event-key'] = encodeURIComponent(event.key);
  if (turn !== undefined) headers['turnout-key-number'] = formatTurn(turn);
  if (shadow) {
    headers['turnout-shadow'] = '1';
    const data = Buffer.from(JSON.stringify({ version: event.version, data: event.data })).toString('base64url');
    if (data.length <= maxEventDataLength) headers['turnout-event-data'] = data;
  }
  for (const name of ['traceparent', 'tracestate'])
    if (event.headers[name] !== undefined) headers[name] = event.headers[name];
  return headers;
}

/** What an endpoint learns from the headers of a call. */
export interface CalledEffect {
  readonly consumer: string;
  readonly effectKey: string;
  readonly eventId: string;
  readonly eventType: string;
  readonly source: string;
  readonly topic: string;
  readonly key: string | null;
  readonly occurredAt: Date;
  readonly turn: Turn | undefined;
  /** Stamped in stage `shadow`. */
  readonly shadow: boolean;
  /** What the event holds, of calls in stage `shadow` that could carry it. */
  readonly eventData?: { readonly version: number; readonly data: unknown };
}

/** Whether a request comes through Turnout. An Idempotency-Key alone does not say so: the old endpoint may have its own. */
export function hasCallHeaders(headers: Readonly<Record<string, unknown>>): boolean {
  return Object.keys(headers).some((name) => name.startsWith('turnout-'));
}

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
// The fraction and the zone are asked for, since the inbox finds a repeat by this time.
const time = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$/;

/**
 * Reads the headers of a call. Throws TURNOUT_CALL_HEADERS_MALFORMED with the name of the bad header,
 * TURNOUT_EFFECT_KEY_REUSED if the effect key is another event's.
 */
export function readCallHeaders(
  headers: Readonly<Record<string, string | readonly string[] | undefined>>,
  now: Date = new Date(),
): CalledEffect {
  const one = (name: string): string => {
    const value = headers[name];
    if (typeof value !== 'string' || value.trim() === '' || value.length > 8_000) throw malformed(name, value);
    return value.trim();
  };
  const optional = (name: string): string | undefined => (headers[name] === undefined ? undefined : one(name));

  const consumer = one('turnout-consumer');
  const eventId = one('turnout-event-id').toLowerCase();
  if (!uuid.test(eventId)) throw malformed('turnout-event-id', eventId);
  const effectKey = one('idempotency-key').replace(/^"(.*)"$/, '$1');
  if (effectKey !== effectKeyOf(consumer, eventId)) {
    throw new TurnoutError(
      'TURNOUT_EFFECT_KEY_REUSED',
      `The effect key ${JSON.stringify(effectKey)} is not that of event ${eventId} for ${consumer}.`,
      {
        details: { effectKey, eventId, consumer },
      },
    );
  }
  const timeText = one('turnout-event-time');
  const occurredAt = new Date(timeText);
  // Far ahead of this clock it is no event's time, and would make an inbox partition.
  const aheadMs = occurredAt.getTime() - now.getTime();
  if (!time.test(timeText) || !(aheadMs < 24 * 60 * 60 * 1000)) throw malformed('turnout-event-time', timeText);
  const turnText = optional('turnout-key-number');
  const turn = parseTurn(turnText);
  if (turnText !== undefined && (turn === undefined || turn.generation < 1 || turn.number < 1))
    throw malformed('turnout-key-number', turnText);
  const key = decodeKey(optional('turnout-event-key'));
  if (turn !== undefined && key === null) throw malformed('turnout-event-key', undefined);
  const shadow = headers['turnout-shadow'] === '1';
  const eventData = shadow ? readEventData(headers['turnout-event-data']) : undefined;
  return {
    consumer,
    effectKey,
    eventId,
    eventType: one('turnout-event-type'),
    source: one('turnout-event-source'),
    topic: one('turnout-event-topic'),
    key,
    occurredAt,
    turn,
    shadow,
    ...(eventData === undefined ? {} : { eventData }),
  };
}

/** Undefined for what can't be read: a comparison must never break the real call. */
function readEventData(value: string | readonly string[] | undefined): CalledEffect['eventData'] {
  if (typeof value !== 'string' || value.length > maxEventDataLength) return undefined;
  try {
    const parsed: unknown = JSON.parse(Buffer.from(value.trim(), 'base64url').toString());
    if (typeof parsed !== 'object' || parsed === null || !('data' in parsed) || !('version' in parsed))
      return undefined;
    return Number.isInteger(parsed.version) ? { version: parsed.version as number, data: parsed.data } : undefined;
  } catch {
    return undefined;
  }
}

function decodeKey(text: string | undefined): string | null {
  if (text === undefined) return null;
  try {
    const key = decodeURIComponent(text);
    if (key.includes('\0')) throw malformed('turnout-event-key', text);
    return key;
  } catch {
    throw malformed('turnout-event-key', text);
  }
}

function malformed(name: string, value: unknown): TurnoutError {
  const shown = value === undefined ? 'is missing' : `is ${JSON.stringify(value).slice(0, 200)}`;
  return new TurnoutError('TURNOUT_CALL_HEADERS_MALFORMED', `The header ${name} ${shown}.`, {
    details: { header: name },
  });
}
