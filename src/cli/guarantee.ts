/** What decides which guarantee a switchover really has. */
interface SwitchoverFacts {
  readonly stage: string;
  readonly order: 'key' | 'none';
  readonly since: unknown;
  /** Default: wrapped. */
  readonly endpoint?: 'wrapped' | 'bridged';
}

interface ConsumerFacts {
  readonly mode?: 'transaction' | 'detached';
}

/** What else is known of where calls come from and go to. */
export interface Surroundings {
  /** Its calls are recorded by a proxy in front of the endpoint, not by the code that makes them. */
  readonly proxied?: boolean;
  /** Whether a wrapped endpoint of the consumer has told of calls; undefined: nobody can look. */
  readonly wrappedSeen?: boolean | undefined;
}

/**
 * What is promised for one switchover, in sentences; what isn't is said too. The consumer is given when its definition
 * is in the same configuration; otherwise only its team knows how its handlers work.
 */
export function guaranteeOf(
  switchover: SwitchoverFacts,
  consumer: ConsumerFacts | undefined,
  { proxied = false, wrappedSeen }: Surroundings = {},
): string[] {
  const bridged = switchover.endpoint === 'bridged';
  return [
    proxied
      ? 'NOT promised: that business change and event commit together; a proxy records the call when it comes, so what never reaches the proxy is not known'
      : 'the business change and the event commit together, or neither does',
    switchover.stage === 'rpc' || switchover.stage === 'shadow'
      ? bridged
        ? 'a call is owed from the commit on, and made again until the endpoint answers with a status that counts'
        : 'a call is owed from the commit on, and made again until the consumer answers with its outcome'
      : 'events reach Kafka at least once; a repeat carries the same id and sequence',
    ...(bridged
      ? [
          'NOT promised: once in effect; nobody can change the endpoint: at least once, with the Idempotency-Key for it to go by if it can',
        ]
      : [
          onceInEffect(consumer),
          ...(wrappedSeen === false && switchover.stage !== 'done'
            ? [
                'NOT seen: a call at a wrapped endpoint of the consumer; while it is unwrapped, each call may have its effect again',
              ]
            : []),
        ]),
    orderOf(switchover, bridged),
    ...(switchover.since === undefined || switchover.since === null
      ? ['NOT ready for events: where the consumer starts is not recorded (`turnout switch <name> rpc` again)']
      : []),
  ];
}

function orderOf({ order }: SwitchoverFacts, bridged: boolean): string {
  if (order !== 'key') return 'NOT promised: order between effects';
  return bridged
    ? 'effects of one key are asked for in the order of their events, one at a time; a change of stage drains first'
    : 'effects of one key happen in the order in which their events were published, also across calls and events';
}

function onceInEffect(consumer: ConsumerFacts | undefined): string {
  switch (consumer?.mode) {
    case 'detached':
      return 'NOT promised: once in effect; the handlers are detached: at least once, uncertain ones are reported';
    case 'transaction':
      return 'each effect in the consumer’s database happens once, whichever path brought it; NOT promised: effects elsewhere';
    default:
      return 'each effect happens once, if the consumer’s handlers work in the transaction of its inbox (its own `turnout status` knows)';
  }
}
