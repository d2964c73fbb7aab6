import { Inject, UseInterceptors } from '@nestjs/common';
import type { InjectionToken, NestInterceptor } from '@nestjs/common';
import { RESPONSE_PASSTHROUGH_METADATA, ROUTE_ARGS_METADATA } from '@nestjs/common/constants.js';
import { RouteParamtypes } from '@nestjs/common/enums/route-paramtypes.enum.js';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Endpoint } from '../../src/switchover/index.ts';
import { Gate } from './gate.ts';

/**
 * Puts a gate in front of a controller's method, which stays as it is: its effect happens once, in order, and in one transaction with
 * what the gate writes. What it answers is held back until the commit, and sent with `Turnout-Outcome`. Calls without
 * Turnout's headers go through untouched. `endpoint` is the endpoint, or the token under which a module provides it.
 *
 * It is an interceptor, so Nest's order holds: guards come before the gate, and what they refuse has no outcome. Pipes, the method, and
 * interceptors that are nearer to it are part of the effect. What interceptors around it and exception filters make of the answer is
 * what is held back, judged by its status, and given to repeats.
 *
 * Throws TURNOUT_DEFINITION_INVALID for a method that sends its answer itself (`@Res()` without `passthrough`): those would have no
 * part in it.
 *
 * @example
 * @Post('confirmations')
 * @SwitchedOver(MAIL_ENDPOINT)
 * async confirm(@Body() order: Order) { … }
 */
export function SwitchedOver(endpoint: Endpoint<never> | InjectionToken): MethodDecorator {
  return (target, name, descriptor) => {
    refuseOwnAnswer(target, name);
    UseInterceptors(interceptorOf(endpoint))(target, name, descriptor);
  };
}

function interceptorOf(endpoint: Endpoint<never> | InjectionToken): NestInterceptor | (new (own: Endpoint) => Gate) {
  if (isEndpoint(endpoint)) return new Gate(endpoint);
  // A class of its own, so that Nest finds the endpoint where it finds what the controller needs.
  class GateOfToken extends Gate {}
  Inject(endpoint)(GateOfToken, undefined, 0);
  return GateOfToken;
}

function isEndpoint(endpoint: Endpoint<never> | InjectionToken): endpoint is Endpoint<never> {
  return typeof endpoint === 'object' && 'answer' in endpoint;
}

/** What `reflect-metadata`, which Nest loads, adds. */
const metadata = Reflect as unknown as {
  getMetadata(key: string, target: object, name: string | symbol): object | boolean | undefined;
};

function refuseOwnAnswer(target: object, name: string | symbol): void {
  const parameters = metadata.getMetadata(ROUTE_ARGS_METADATA, target.constructor, name) ?? {};
  const sends = [RouteParamtypes.RESPONSE, RouteParamtypes.NEXT].some((kind) =>
    Object.keys(parameters).some((key) => key.startsWith(`${kind}:`)),
  );
  if (!sends || metadata.getMetadata(RESPONSE_PASSTHROUGH_METADATA, target.constructor, name) === true) return;
  throw new TurnoutError(
    'TURNOUT_DEFINITION_INVALID',
    `${target.constructor.name}.${String(name)} sends its answer itself: return it, or use @Res({ passthrough: true }).`,
    { details: { path: `${target.constructor.name}.${String(name)}` } },
  );
}
