// Fulfilment and loyalty, where the order of a customer's changes matters.
import { automaticStepBacks } from './audit.ts';
import type { Teller } from './teller.ts';

export async function moveFulfilment({ world, view, watch, forSeconds, switchTo, until }: Teller): Promise<void> {
  view.chapter('6. Fulfilment moves, with calls missing: what comes early waits');
  view.say(
    'Orders of one customer must keep their order. The network loses calls before they arrive, and then the switch is thrown:',
  );
  view.say(
    'events that follow a missing call are held until that call was made again. No check would allow it, so it is forced.',
  );
  world.wires.fulfilment.lose({ requests: 0.25 });
  await forSeconds(3);
  await switchTo('fulfilment', { stage: 'event', force: true, reason: 'the warehouse can’t wait' });
  world.wires.fulfilment.lose({});
  await until(
    'the missing calls',
    () => watch.standing?.owedCalls.fulfilment === 0 && watch.standing.held.fulfilment === 0,
  );
  view.say(`${watch.heldEarly.size} events were held early so far, and had their turn.`);
}

export async function moveLoyaltyAndBack({ world, view, end, forSeconds, switchTo }: Teller): Promise<void> {
  view.chapter('7. Loyalty moves without looking first; its consumer dies, and loyalty goes back');
  await switchTo('loyalty', { stage: 'event', force: true, reason: 'the loyalty team is in a hurry' });
  await forSeconds(3);
  view.say(`${end} what consumes for loyalty; events pile up. The team goes back to calls:`);
  await world.killLoyaltyConsumer();
  await forSeconds(2);
  await switchTo('loyalty', { stage: 'rpc', reason: 'the consumer died, nobody knows why yet' });
  view.say(
    'A call that comes before a missing event is told so (425), and the missing ones are sent by call, in order.',
  );
  await forSeconds(4);
  view.say(
    'The consumer is back: the events that it finds now were already done by call, and are dropped. Forward again:',
  );
  await world.startLoyaltyConsumer();
  await switchTo('loyalty', { stage: 'event', force: true, reason: 'the consumer was out of memory' });
  await forSeconds(2);
}

export async function stepBackByItself({
  world,
  view,
  watch,
  signal,
  until,
  switchTo,
  promote,
  forSeconds,
}: Teller): Promise<void> {
  view.chapter('8. A release of loyalty fails, and the guardrails step back by themselves');
  view.say(
    'Release 2 of the consumer fails for every order of a radio; such events are parked, with what follows of the customer.',
  );
  await world.deployLoyaltyConsumer('2');
  await until(
    'the guardrails to step back',
    async () =>
      (await automaticStepBacks(world.shop)).length > 0 && world.alerts.some(({ kind }) => kind === 'stepped-back'),
    30_000,
  ).catch((error: unknown) => {
    signal.throwIfAborted();
    view.say(error instanceof Error ? error.message : String(error));
  });
  const [why] = await automaticStepBacks(world.shop);
  if (why !== undefined) view.say(`Stage rpc, and nobody had to be awake. The history: “${why}”.`);
  for (const { kind, switchover, to } of world.alerts)
    view.say(`The webhook was told: ${kind}, ${switchover} to ${to}.`);
  view.say('What is parked, and what the consumer has not read, comes through the old endpoint at once, in order:');
  await switchTo('loyalty', { stage: 'rpc', redrive: true, reason: 'release 2 knows no radios' });
  await until(
    'what was parked',
    () =>
      watch.standing?.parked.loyalty === 0 &&
      watch.standing.held.loyalty === 0 &&
      watch.standing.owedCalls.loyalty < 20,
  );
  view.say('Nothing is parked any more. Release 3 is repaired, and this time loyalty is rehearsed first: no --force.');
  await world.deployLoyaltyConsumer('3');
  await promote('loyalty', { stage: 'shadow', reason: 'release 3 knows all items' });
  await forSeconds(4);
  await promote('loyalty', { stage: 'ramp', percent: 50, reason: 'all copies came, in order' });
  await forSeconds(2);
  await promote('loyalty', { stage: 'event', reason: 'half of the customers are fine' });
}
