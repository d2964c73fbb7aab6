import { TurnoutError } from '../errors/index.ts';
import { isName } from '../event/index.ts';
import type { AnyEventDefinition, Ordering, Reaction } from '../event/index.ts';
import type { EndpointKind } from './calls/bridged-answer.ts';
import { validateCheckRules } from './checks/check-rules.ts';
import type { CheckRules } from './checks/check-rules.ts';
import { validateGuardrailRules } from './checks/guardrails.ts';
import type { GuardrailRules } from './checks/guardrails.ts';

/** What a call is made with. It depends on the event and on service credentials only: a re-driven call has no user's token. */
export interface RpcCall {
  /** To be sent with the request, as they are: the endpoint recognises the effect by them. Names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  /** Aborted when `timeoutMs` have passed. */
  readonly signal: AbortSignal;
  readonly effectKey: string;
  /** Counts from 1; above, the call may have had its effect before. */
  readonly attempt: number;
  readonly timeoutMs: number;
}

/** What came back from a call. Header names in lower case: Turnout-Outcome among them says how the effect ended. */
export interface RpcAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: unknown;
}

/** What a switchover may name as its reply: an event, or none. */
export type MaybeReply = AnyEventDefinition | undefined;

/** One consumer's move from calls to events; made by {@link defineSwitchover}. */
export interface SwitchoverDefinition<Replied extends MaybeReply = MaybeReply> {
  readonly name: string;
  readonly consumer: string;
  readonly order: Ordering;
  readonly rpc: readonly Reaction<RpcCall, RpcAnswer>[];
  /** The longest that one call may take, in milliseconds. */
  readonly timeoutMs: number;
  /** What stands at the other end of its calls. */
  readonly endpoint: EndpointKind;
  /** Of a bridged endpoint: whether a 4xx refuses the effect for good. */
  readonly isDefinitive: ((status: number) => boolean) | undefined;
  readonly topic: string;
  readonly eventTypes: readonly string[];
  /** The event with which the consumer answers, once it is moved. */
  readonly reply?: Replied;
  /** What its checks are held against, where that isn't the default. */
  readonly checks?: CheckRules;
  /** When it is stepped back by itself, where that isn't the default. */
  readonly guardrails?: GuardrailRules;
}

/**
 * Defines one consumer's move from calls to events, with the calls that its publisher makes today. The event types
 * share one topic; with `order: 'key'` all of them are ordered by key, and so are their effects.
 * `timeoutMs` (default 10,000) bounds one call. Throws TURNOUT_SWITCHOVER_INVALID with the path of the bad field.
 *
 * @example
 * const confirmation = defineSwitchover({
 *   name: 'order-confirmation',
 *   consumer: 'email',
 *   order: 'none',
 *   rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, 'http://email/confirmations', { json: event.data }))],
 * });
 */
export function defineSwitchover<Replied extends MaybeReply = undefined>(definition: {
  name: string;
  /** The consumer that moves; one consumer group later. */
  consumer: string;
  /** `'key'`: effects of one key happen in the order of its events. `'none'`: right for e-mails and webhooks. */
  order: Ordering;
  /** `on(Event, (event, call) => …)` for each event type: makes the call and gives its answer, whatever the status. */
  rpc: readonly Reaction<RpcCall, RpcAnswer>[];
  timeoutMs?: number;
  /**
   * `'wrapped'` (default): the endpoint is behind the gate (`createEndpoint`). `'bridged'`: nobody can change it; its status
   * counts, and `turnout bridge` calls it for events. Then there is no ramp: the switchover drains and flips.
   */
  endpoint?: EndpointKind;
  /**
   * For a bridged endpoint: whether a 4xx refuses the effect for good. Default: 400, 410 and 422; with the others the
   * call stays owed. Give the bridge (`defineBridge`) the same.
   */
  isDefinitive?: (status: number) => boolean;
  /** The event with which the consumer answers (docs/replies.md): whoever waits for `reply()` gets its data after the switch. */
  reply?: Replied;
  /** Limits of the checks before a promotion (docs/checks.md); what is left out has its default. */
  checks?: CheckRules;
  /** Limits that step it back by itself, in `turnout run`; `{ enabled: false }` switches that off. */
  guardrails?: GuardrailRules;
}): SwitchoverDefinition<Replied> {
  const { name, consumer, order, rpc, timeoutMs = 10_000, endpoint = 'wrapped', isDefinitive } = definition;
  if (!isName(name))
    throw invalid(
      name,
      'name',
      `${JSON.stringify(name)} is not a name: lower case letters, digits, dots, dashes, underscores.`,
    );
  if (!isName(consumer))
    throw invalid(
      name,
      'consumer',
      `Switchover ${name} has the consumer ${JSON.stringify(consumer)}, which is not a name.`,
    );
  if (order !== 'key' && order !== 'none')
    throw invalid(name, 'order', `Switchover ${name} has order ${JSON.stringify(order)}; it is 'key' or 'none'.`);
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > 600_000) {
    throw invalid(
      name,
      'timeoutMs',
      `Switchover ${name} has timeoutMs ${timeoutMs}; it is a whole number of milliseconds up to 600,000.`,
    );
  }
  if (endpoint !== 'wrapped' && endpoint !== 'bridged')
    throw invalid(
      name,
      'endpoint',
      `Switchover ${name} has endpoint ${JSON.stringify(endpoint)}; it is 'wrapped' or 'bridged'.`,
    );
  if (isDefinitive !== undefined && endpoint === 'wrapped')
    throw invalid(
      name,
      'isDefinitive',
      `Switchover ${name} has isDefinitive, which is for bridged endpoints: a wrapped one decides itself (createEndpoint).`,
    );
  validateCheckRules(name, definition.checks ?? {});
  validateGuardrailRules(name, definition.guardrails ?? {});
  const first = rpc[0]?.event;
  if (first === undefined) throw invalid(name, 'rpc', `Switchover ${name} has no calls.`);
  const seen = new Set<string>();
  for (const [index, { event }] of rpc.entries()) {
    const path = `rpc.${index}`;
    const versioned = `${event.name} v${event.version}`;
    if (seen.has(versioned)) throw invalid(name, path, `Switchover ${name} has two calls for ${versioned}.`);
    seen.add(versioned);
    // Numbers are counted per (consumer, topic, key): events of two topics could overtake each other.
    if (event.topic.name !== first.topic.name) {
      throw invalid(
        name,
        path,
        `Switchover ${name} has event types on the topics ${first.topic.name} and ${event.topic.name}.`,
      );
    }
    if (order === 'key' && event.order !== 'key') {
      throw invalid(name, path, `Switchover ${name} is ordered by key, and ${event.name} is not.`);
    }
  }
  return Object.freeze({
    name,
    consumer,
    order,
    rpc,
    timeoutMs,
    endpoint,
    isDefinitive,
    topic: first.topic.name,
    eventTypes: [...new Set(rpc.map(({ event }) => event.name))],
    ...(definition.reply === undefined ? {} : { reply: definition.reply }),
    ...(definition.checks === undefined ? {} : { checks: definition.checks }),
    ...(definition.guardrails === undefined ? {} : { guardrails: definition.guardrails }),
  });
}

/** The call for an event: that of its own version if there is one, else that of its type. */
export function callFor(
  definition: SwitchoverDefinition,
  type: string,
  version: number,
): Reaction<RpcCall, RpcAnswer> | undefined {
  const ofType = definition.rpc.filter(({ event }) => event.name === type);
  return ofType.find(({ event }) => event.version === version) ?? ofType[0];
}

function invalid(switchover: string, path: string, what: string): TurnoutError {
  return new TurnoutError('TURNOUT_SWITCHOVER_INVALID', what, { details: { switchover, path } });
}
