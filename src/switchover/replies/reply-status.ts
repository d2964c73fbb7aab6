import { isRejected } from '../calls/call-headers.ts';
import type { AnsweredOutcome } from '../calls/call-headers.ts';
import type { KeptReply, KnownReply } from './reply-store.ts';

/** What is known of the reply to one effect. */
export type ReplyStatus =
  /** A reply event came. */
  | { readonly status: 'done'; readonly route: 'event'; readonly reply: unknown }
  /**
   * The call was answered; `rejected` also if the effect was given up (`outcome` is `dead` or `skipped`). `reply` is missing if the answer was not kept (over 64 kB, or no JSON), `outcome` too if somebody
   * ended the call who keeps no answers: a process of a version before the reply was declared.
   */
  | {
      readonly status: 'done' | 'rejected';
      readonly route: 'rpc';
      readonly outcome?: AnsweredOutcome;
      readonly reply?: KeptReply;
    }
  /** Published, and not answered yet. */
  | { readonly status: 'pending' }
  /** Never published here, rolled back, or older than replies are kept. */
  | { readonly status: 'unknown' };

/** An answer to be sent by any framework. */
export interface PlainAnswer {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  /** To be sent as JSON. */
  readonly body: unknown;
}

/** What is known, as a status. A reply event goes before a call's answer: it is what was asked for. */
export function statusOf(known: KnownReply | undefined): ReplyStatus {
  if (known === undefined) return { status: 'unknown' };
  if (known.event !== undefined) return { status: 'done', route: 'event', reply: known.event.data };
  if (known.call === undefined) {
    return known.route === 'rpc' && !known.isOwed ? { status: 'done', route: 'rpc' } : { status: 'pending' };
  }
  const { outcome, answer } = known.call;
  const rejected = isRejected(outcome, answer?.status ?? 200);
  return {
    status: rejected ? 'rejected' : 'done',
    route: 'rpc',
    outcome,
    ...(answer === undefined ? {} : { reply: answer }),
  };
}

/** Seconds after which to ask again. */
const retryAfter = '1';

/** What {@link acceptedAnswer} takes: a reply that is not there yet. */
export interface PendingReply {
  readonly status: 'pending';
  readonly effectKey: string;
  readonly statusUrl?: string;
}

/**
 * The answer to a request whose reply is not there yet: 202, with where to ask for it.
 *
 * @example
 * const reply = await published.reply(confirmation, { timeoutMs: 2_000 });
 * if (reply.status === 'pending') {
 *   const { status, headers, body } = acceptedAnswer(reply);
 *   return response.status(status).set(headers).json(body);
 * }
 */
export function acceptedAnswer({ effectKey, statusUrl }: PendingReply): PlainAnswer {
  return {
    status: 202,
    headers: { 'retry-after': retryAfter, ...(statusUrl === undefined ? {} : { location: statusUrl }) },
    body: { status: 'pending', effectKey, ...(statusUrl === undefined ? {} : { statusUrl }) },
  };
}

export interface ReplyStatusOptions {
  /**
   * Whether this caller may see this reply. An effect key is no secret: it stands in headers, logs and every copy of the
   * event. Ask whose order it is, as for any other read. If it throws, so does {@link answerReplyStatus}.
   */
  readonly authorize: (effectKey: string) => boolean | Promise<boolean>;
}

const effectKeyPattern = /^[a-z0-9][a-z0-9._-]{0,99}\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * Answers `GET …/<effect key>`, for any framework: 200 with the reply, 202 while it is pending, 404 if it is unknown or not
 * the caller's (that it exists is told to nobody else).
 *
 * @example
 * app.get('/replies/:effectKey', async (request, response) => {
 *   const { status, headers, body } = await answerReplyStatus(turnout, request.params.effectKey, {
 *     authorize: (effectKey) => isOwner(request.user, effectKey),
 *   });
 *   response.status(status).set(headers).json(body);
 * });
 */
export async function answerReplyStatus(
  replies: { replyStatus(effectKey: string): Promise<ReplyStatus> },
  effectKey: string,
  { authorize }: ReplyStatusOptions,
): Promise<PlainAnswer> {
  const isAllowed = effectKeyPattern.test(effectKey) && (await authorize(effectKey));
  const known: ReplyStatus = isAllowed ? await replies.replyStatus(effectKey) : { status: 'unknown' };
  // What is pending now is another answer in a second: no cache may keep it.
  const headers = { 'cache-control': 'no-store' };
  const body = { effectKey, ...known };
  if (known.status === 'unknown') return { status: 404, headers, body };
  if (known.status === 'pending') return { status: 202, headers: { ...headers, 'retry-after': retryAfter }, body };
  return { status: 200, headers, body };
}
