import type { Queryable } from '../../database/index.ts';
import type { Route } from '../../event/index.ts';
import type { AnsweredOutcome } from '../calls/call-headers.ts';
import { headersForCallers } from '../endpoint/caller-headers.ts';
import type { RpcAnswer } from '../define-switchover.ts';
import { keptJson } from '../calls/kept-json.ts';

/** What the producer's database knows of an effect whose reply may be waited for. */
export interface KnownReply {
  readonly effectKey: string;
  readonly switchover: string;
  /** Which way the event was sent. */
  readonly route: Route;
  /** How the call ended, if one was made and answered. */
  readonly call: { readonly outcome: AnsweredOutcome; readonly answer: KeptReply | undefined } | undefined;
  /** What a reply event said. */
  readonly event: { readonly type: string; readonly data: unknown } | undefined;
  /** Whether a call is still to be made. */
  readonly isOwed: boolean;
}

/** A call's answer as it is kept. */
export interface KeptReply {
  readonly status: number;
  readonly body: unknown;
}

interface KnownRow {
  effect_key: string;
  switchover: string;
  route: Route;
  outcome: AnsweredOutcome | null;
  answer: string | null;
  event_id: string | null;
  event_type: string | null;
  data: string | null;
  is_owed: boolean;
}

/** Larger answers are not kept; the caller that made the call still gets them. */
const maxKeptBytes = 65_536;

/** Makes room for the replies of events, in their own transaction. `replyType`: of the event that answers; no other one does. */
export async function awaitReplies(
  tx: Queryable,
  awaited: readonly {
    readonly effectKey: string;
    readonly switchover: string;
    readonly route: Route;
    readonly replyType: string;
  }[],
): Promise<void> {
  // Text in: what the user has told the driver about arrays changes nothing.
  await tx.query(
    `select turnout.await_replies(array(select json_array_elements_text($1::text::json)),
                                  array(select json_array_elements_text($2::text::json)),
                                  array(select json_array_elements_text($3::text::json)),
                                  array(select json_array_elements_text($4::text::json)))`,
    [
      JSON.stringify(awaited.map(({ effectKey }) => effectKey)),
      JSON.stringify(awaited.map(({ switchover }) => switchover)),
      JSON.stringify(awaited.map(({ route }) => route)),
      JSON.stringify(awaited.map(({ replyType }) => replyType)),
    ],
  );
}

/** Keeps what a reply event says. Gives false if nobody asked for it, it is of another type than was, or it was there before. */
export async function recordReply(
  tx: Queryable,
  effectKey: string,
  event: { readonly id: string; readonly type: string; readonly data: unknown },
): Promise<boolean> {
  const { rows } = await tx.query<{ kept: boolean }>(
    'select turnout.record_reply($1, $2, $3, $4::text::json) as kept',
    [effectKey, event.id, event.type, JSON.stringify(event.data)],
  );
  return rows[0]!.kept;
}

/**
 * Whether a call was told no more than that its effect has happened: it came as an event, and nobody had answered a call. If
 * there is a reply, it is an event.
 */
export function saysNothing(outcome: AnsweredOutcome, { status, headers, body }: RpcAnswer): boolean {
  if (outcome !== 'duplicate' || status !== 200) return false;
  // What a client of gRPC or Connect makes of no message is one of default values.
  if (headers['turnout-answer'] === 'none') return true;
  return body === null || body === undefined || keptJson(body) === '{}';
}

/** Ends a call that was owed, and keeps its answer for whoever asks: publishers for a reply, callers of a proxy again. */
export async function settleCall(
  database: Queryable,
  effectKey: string,
  { outcome, answer }: { readonly outcome: AnsweredOutcome; readonly answer: RpcAnswer },
): Promise<void> {
  await database.query('select turnout.settle_call($1, $2, $3::text::json)', [
    effectKey,
    ...(saysNothing(outcome, answer) ? [null, null] : [outcome, keptText(answer)]),
  ]);
}

/** Without its body if that is too large or no JSON (a stream, a cycle): then it is for the caller only. */
function keptText({ status, headers, body }: RpcAnswer): string | null {
  const rest = { status, headers: headersForCallers(headers) };
  const text = keptJson({ ...rest, body: body ?? null });
  if (text !== undefined && Buffer.byteLength(text) <= maxKeptBytes) return text;
  return keptJson(rest) ?? null;
}

/** What is known of effects. Those that were never published, or rolled back, are missing. */
export async function readReplies(database: Queryable, effectKeys: readonly string[]): Promise<KnownReply[]> {
  const { rows } = await database.query<KnownRow>(
    `select r.effect_key, r.switchover, r.route, r.outcome, r.answer, r.event_id::text as event_id, r.event_type, r.data, r.is_owed
       from turnout.reply_status(array(select json_array_elements_text($1::text::json))) r`,
    [JSON.stringify(effectKeys)],
  );
  return rows.map((row) => ({
    effectKey: row.effect_key,
    switchover: row.switchover,
    route: row.route,
    call:
      row.outcome === null
        ? undefined
        : { outcome: row.outcome, answer: row.answer === null ? undefined : (JSON.parse(row.answer) as KeptReply) },
    event:
      row.event_id === null
        ? undefined
        : { type: row.event_type!, data: row.data === null ? null : (JSON.parse(row.data) as unknown) },
    isOwed: row.is_owed,
  }));
}
