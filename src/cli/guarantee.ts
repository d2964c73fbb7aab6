/** What decides which guarantee a switchover really has. */
interface SwitchoverFacts {
  readonly stage: string;
  readonly order: 'key' | 'none';
  readonly since: unknown;
}

interface ConsumerFacts {
  readonly mode?: 'transaction' | 'detached';
}

/**
 * What is promised for one switchover, in sentences; what isn't is said too. The consumer is given when its definition
 * is in the same configuration; otherwise only its team knows how its handlers work.
 */
export function guaranteeOf(switchover: SwitchoverFacts, consumer: ConsumerFacts | undefined): string[] {
  return [
    'the business change and the event commit together, or neither does',
    switchover.stage === 'rpc'
      ? 'a call is owed from the commit on, and made again until the consumer answers with its outcome'
      : 'events reach Kafka at least once; a repeat carries the same id and sequence',
    onceInEffect(consumer),
    switchover.order === 'key'
      ? 'effects of one key happen in the order in which their events were published, also across calls and events'
      : 'NOT promised: order between effects',
    ...(switchover.since === undefined || switchover.since === null
      ? ['NOT ready for events: where the consumer starts is not recorded (`turnout switch <name> rpc` again)']
      : []),
  ];
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
