import type { CallHandler, ExecutionContext, NestInterceptor } from '@nestjs/common';
import { lastValueFrom, of } from 'rxjs';
import type { Observable } from 'rxjs';
import { abandoning } from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Endpoint, GateAnswer } from '../../src/switchover/index.ts';
import { describe, keptAnswer, whole } from './answer.ts';
import type { Given } from './answer.ts';
import { addedHeaders, endpointName, headerNames, writeHeaders } from './platform.ts';
import type { RequestLike, ResponseLike } from './platform.ts';

/** The interceptor that holds back what a controller's method answers. */
export class Gate implements NestInterceptor {
  readonly #endpoint: Endpoint;
  constructor(endpoint: Endpoint) {
    this.#endpoint = endpoint;
  }

  async intercept(context: ExecutionContext, next: CallHandler): Promise<Observable<unknown>> {
    if (context.getType() !== 'http')
      throw new TurnoutError('TURNOUT_DEFINITION_INVALID', '@SwitchedOver is for the methods of HTTP controllers.', {
        details: { path: `${context.getClass().name}.${context.getHandler().name}` },
      });
    const endpoint = this.#endpoint;
    const request = context.switchToHttp().getRequest<RequestLike>();
    const response = context.switchToHttp().getResponse<ResponseLike>();
    const before = headerNames(response);
    const statusBefore = response.statusCode;
    let given: Given | undefined;
    const answer = await endpoint.answer(
      {
        original: request,
        headers: request.headers,
        endpoint: endpointName(request),
        address: request.ip,
        body: () => Promise.resolve(request.body ?? ''),
      },
      async () => {
        // Nest binds what follows to where `handle` is called: inside the transaction.
        given = await answerOf(endpoint, next);
        const described = describe(given, response.statusCode, addedHeaders(response, before));
        if (described.body.length > endpoint.maxAnswerBytes) throw tooLarge(endpoint);
        return described;
      },
    );
    if (answer.kind === 'pass') return next.handle();
    if (answer.kind === 'handler') {
      writeHeaders(response, answer.headers);
      if ('error' in given!) throw given.error;
      return of(given!.value);
    }
    // What a handler set whose answer is not sent.
    for (const name of Object.keys(addedHeaders(response, before))) response.removeHeader(name);
    response.status(statusBefore);
    return send(answer, response);
  }
}

function send(answer: Extract<GateAnswer, { kind: 'gate' }>, response: ResponseLike): Observable<unknown> {
  const { headers, result } = keptAnswer(answer);
  writeHeaders(response, headers);
  if ('error' in result) throw result.error;
  response.status(answer.status);
  return of(result.value);
}

/** Runs pipes and method to the end; what they throw is an answer too. A file is read whole. */
async function answerOf(endpoint: Endpoint, next: CallHandler): Promise<Given> {
  const { consumer, handlerTimeoutMs, maxAnswerBytes } = endpoint;
  const enough = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const what = `The handler of ${consumer} did not answer within ${handlerTimeoutMs} ms.`;
      const error = abandoning(new TurnoutError('TURNOUT_HANDLER_FAILED', what));
      enough.abort(error);
      reject(error);
    }, handlerTimeoutMs);
  });
  const complete = lastValueFrom(next.handle(), { defaultValue: undefined }).then(
    (value: unknown) => whole(value, maxAnswerBytes, () => tooLarge(endpoint), enough.signal),
    (error: unknown): Given => ({ error }),
  );
  // Once it is too late, nobody else hears of it.
  complete.catch(() => undefined);
  try {
    return await Promise.race([complete, tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

function tooLarge({ maxAnswerBytes }: Endpoint): TurnoutError {
  return new TurnoutError('TURNOUT_ANSWER_TOO_LARGE', `The answer has more than ${maxAnswerBytes} bytes.`);
}
