import type { CallHandler, ExecutionContext, NestInterceptor } from '@nestjs/common';
import { of } from 'rxjs';
import type { Observable } from 'rxjs';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Endpoint } from '../../src/switchover/index.ts';
import { mute, requestBody, throughGate } from '../../src/switchover/index.ts';
import { endpointName, rawRequest, rawResponse } from './platform.ts';
import type { RequestLike, ResponseLike } from './platform.ts';

/**
 * The interceptor that lets a controller's method into the transaction. The answer is held back where Node writes it, behind all that
 * Nest does with it: what is kept, and given to repeats, is what went out, and not what the method returned.
 */
export class Gate implements NestInterceptor {
  readonly #endpoint: Endpoint;
  constructor(endpoint: Endpoint) {
    this.#endpoint = endpoint;
  }

  intercept(context: ExecutionContext, next: CallHandler): Promise<Observable<unknown>> {
    if (context.getType() !== 'http')
      throw new TurnoutError('TURNOUT_DEFINITION_INVALID', '@SwitchedOver is for the methods of HTTP controllers.', {
        details: { path: `${context.getClass().name}.${context.getHandler().name}` },
      });
    const endpoint = this.#endpoint;
    const http = context.switchToHttp();
    const request = http.getRequest<RequestLike>();
    const [incoming, response] = [rawRequest(request), rawResponse(http.getResponse<ResponseLike>())];
    return new Promise((resolve) => {
      let runs = false;
      const exchange = {
        original: request,
        request: incoming,
        response,
        route: endpointName(request),
        // Parsed already, unless it is for the method to read.
        body: async () => request.body ?? (await requestBody(incoming, endpoint.maxRequestBytes)),
        proceed: () => {
          runs = true;
          // Nest binds pipes and method to where `handle` is called: inside the transaction.
          resolve(next.handle());
        },
        handled: () => true,
      };
      // The interceptors around come to their end for what the gate answers too; what Nest sends then goes nowhere.
      const answered = (): void => {
        mute(response);
        resolve(of(undefined));
      };
      void throughGate(endpoint, exchange).then(() => {
        if (runs) return;
        // Middleware may end it a little later.
        if (response.writableEnded || response.destroyed) answered();
        else response.once('finish', answered).once('close', answered);
      });
    });
  }
}
