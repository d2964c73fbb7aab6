// Why a handler is given up. It may go on; what it then writes through a joined pool is refused.
import { abandoning } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import type { Endpoint } from '../endpoint.ts';

export function tooSlow({ consumer, handlerTimeoutMs }: Pick<Endpoint, 'consumer' | 'handlerTimeoutMs'>): TurnoutError {
  const what = `The handler of ${consumer} did not answer within ${handlerTimeoutMs} ms.`;
  return abandoning(new TurnoutError('TURNOUT_HANDLER_FAILED', what));
}

export function tooLarge(maxBytes: number): TurnoutError {
  return abandoning(new TurnoutError('TURNOUT_ANSWER_TOO_LARGE', `The answer has more than ${maxBytes} bytes.`));
}

export function brokenOff(cause: unknown): TurnoutError {
  const what = 'The handler broke its answer off before the end.';
  return abandoning(new TurnoutError('TURNOUT_HANDLER_FAILED', what, { cause }));
}
