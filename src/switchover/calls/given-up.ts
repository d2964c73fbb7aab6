// Why a handler is given up. It may go on; what it then writes through a joined pool is refused.
import { abandoning } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import type { Endpoint } from '../endpoint/endpoint.ts';
import type { HandlerAnswer } from '../endpoint/gate-answer.ts';

/** Waits for a handler as long as its endpoint does, then rejects; `signal` tells it that nobody waits any more. */
export async function inTime<Result>(
  { consumer, handlerTimeoutMs }: Pick<Endpoint, 'consumer' | 'handlerTimeoutMs'>,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const enough = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      const what = `The handler of ${consumer} did not answer within ${handlerTimeoutMs} ms.`;
      const error = abandoning(new TurnoutError('TURNOUT_HANDLER_FAILED', what));
      enough.abort(error);
      reject(error);
    }, handlerTimeoutMs);
  });
  try {
    return await Promise.race([work(enough.signal), late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The answer, unless it is larger than what the endpoint holds back. */
export function bounded(answer: HandlerAnswer, { maxAnswerBytes }: Pick<Endpoint, 'maxAnswerBytes'>): HandlerAnswer {
  if (answer.body.length > maxAnswerBytes) throw tooLarge(maxAnswerBytes);
  return answer;
}

export function tooLarge(maxBytes: number): TurnoutError {
  return abandoning(new TurnoutError('TURNOUT_ANSWER_TOO_LARGE', `The answer has more than ${maxBytes} bytes.`));
}

export function brokenOff(cause: unknown): TurnoutError {
  const what = 'The handler broke its answer off before the end.';
  return abandoning(new TurnoutError('TURNOUT_HANDLER_FAILED', what, { cause }));
}

/** Why a request is refused before its handler has seen it. */
export function requestTooLarge(maxBytes: number): TurnoutError {
  return new TurnoutError('TURNOUT_REQUEST_TOO_LARGE', `The request has more than ${maxBytes} bytes.`);
}
