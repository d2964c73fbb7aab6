import type { Turn } from '../../event/index.ts';
import { isDefinitiveOfBridged, meaningOf } from './bridged-answer.ts';
import type { EndpointKind } from './bridged-answer.ts';
import { isRejected, parseTurn, readOutcome } from './call-headers.ts';
import type { AnsweredOutcome } from './call-headers.ts';

/** How a call ended at the caller: with an answer of whoever, or with none. */
export type Answered =
  | { readonly kind: 'answer'; readonly status: number; readonly headers: Readonly<Record<string, string>> }
  | { readonly kind: 'failed'; readonly why: string };

export type Next =
  /** The consumer's gate has an outcome: the call is owed no more. `rejected`: the effect was not had, and won't be. */
  | { readonly kind: 'done'; readonly outcome: AnsweredOutcome; readonly rejected: boolean }
  /** The effect, or another one of its key, is being applied: ask again shortly. */
  | { readonly kind: 'poll' }
  /** Events of the key are missing there: send those above `after`, then this one again. */
  | { readonly kind: 'resend'; readonly after: Turn }
  /**
   * Still owed: call again later. `needsSomeone`: calling again won't help until somebody has looked. `uncertain`: it may
   * have had its effect, and may have it again with every call.
   */
  | { readonly kind: 'pending'; readonly why: string; readonly needsSomeone: boolean; readonly uncertain?: boolean };

/** What stands at the other end: an endpoint behind the gate, or one that nobody can change and that knows nothing of outcomes. */
export interface Callee {
  readonly endpoint: EndpointKind;
  /** Of a bridged endpoint: whether a 4xx refuses the effect for good. */
  readonly isDefinitive?: ((status: number) => boolean) | undefined;
}

const wrapped: Callee = { endpoint: 'wrapped' };

/**
 * What follows from an answer. Only one that carries the gate's outcome ends a call: the 404 of a proxy, the 401 of a
 * gateway or the 200 of a captive portal don't. A bridged endpoint has no gate: there 2xx and a definitive 4xx end it.
 */
export function afterAnswer(turn: Turn | undefined, answered: Answered, callee: Callee = wrapped): Next {
  if (answered.kind === 'failed') return { kind: 'pending', why: answered.why, needsSomeone: false };
  const { status, headers } = answered;
  const outcome = readOutcome(headers);
  if (outcome !== undefined) return { kind: 'done', outcome, rejected: isRejected(outcome, status) };
  const error = headers['turnout-error']?.trim();
  if (error === undefined && callee.endpoint === 'bridged') return afterBridgedAnswer(status, callee);
  if (error === undefined) {
    // An endpoint without the gate, or a proxy that drops its headers: it looks as if the effect were had, but nobody says so.
    const uncertain = status >= 200 && status < 300;
    return {
      kind: 'pending',
      why: `status ${status} without the consumer's outcome`,
      needsSomeone: uncertain,
      uncertain,
    };
  }
  if (status === 409) return { kind: 'poll' };
  if (status === 425) {
    const after = missingAfter(turn, parseTurn(headers['turnout-last-number']));
    if (after !== undefined) return { kind: 'resend', after };
  }
  return { kind: 'pending', why: `${status} ${error}`, needsSomeone: status >= 400 && status < 500 && status !== 425 };
}

function afterBridgedAnswer(status: number, { isDefinitive = isDefinitiveOfBridged }: Callee): Next {
  switch (meaningOf(status, isDefinitive)) {
    case 'done':
      return { kind: 'done', outcome: 'applied', rejected: false };
    case 'rejected':
      return { kind: 'done', outcome: 'rejected', rejected: true };
    case 'unavailable':
      return { kind: 'pending', why: `status ${status}`, needsSomeone: false };
    case 'failed':
      return { kind: 'pending', why: `status ${status}`, needsSomeone: status < 500 };
  }
}

/** The turn behind which events are missing; undefined if the answer makes no sense for this turn. */
function missingAfter(turn: Turn | undefined, last: Turn | undefined): Turn | undefined {
  if (turn === undefined || last === undefined) return undefined;
  if (last.generation > turn.generation) return undefined;
  const after = last.generation < turn.generation ? 0 : last.number;
  return after + 1 < turn.number ? { generation: turn.generation, number: after } : undefined;
}
