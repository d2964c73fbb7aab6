// The story that the demo tells. Everything in it is done to the real processes while orders flow.
import { setTimeout as delay } from 'node:timers/promises';
import { waitFor } from '../../../test/support/index.ts';
import { confirmed, countTakeovers, isSettled, owedConfirmations } from './audit.ts';
import type { Load } from './load.ts';
import type { View } from './view.ts';
import type { Watch } from './watch.ts';
import { calledServices, switchoverOf } from './world.ts';
import type { CalledService, World } from './world.ts';

export interface Told {
  /** Orders whose confirmation could not be sent while e-mail was down. */
  readonly owedDuringOutage: readonly string[];
  /** What was ended on purpose, and how often. */
  readonly faults: Readonly<Record<string, number>>;
}

interface Stage {
  readonly world: World;
  readonly load: Load;
  readonly view: View;
  readonly watch: Watch;
  /** Aborted on Ctrl-C. */
  readonly signal: AbortSignal;
  readonly orders: number;
}

export async function tellStory({ world, load, view, watch, signal, orders }: Stage): Promise<Told> {
  const { wires } = world;
  const end = world.kills ? 'SIGKILL to' : 'Stopping';
  const forSeconds = (seconds: number): Promise<unknown> => delay(seconds * 1000, undefined, { signal });
  const owed = (service: CalledService): number => watch.standing?.owedCalls[service] ?? 0;
  const until = (what: string, condition: () => boolean | Promise<boolean>, deadlineMs = 90_000): Promise<boolean> =>
    waitFor(
      async () => {
        signal.throwIfAborted();
        return condition();
      },
      { what, deadlineMs, everyMs: 100 },
    );
  const switchTo = async (service: CalledService, stage: 'rpc' | 'event', reason: string): Promise<void> => {
    view.say(
      `$ turnout switch ${switchoverOf[service]} ${stage}${stage === 'event' ? ' --force' : ''} --reason "${reason}"`,
    );
    await world.switchTo(service, stage, reason);
  };

  view.chapter('1. Everything is a call');
  view.say(
    'The shop places, changes and cancels orders; after each it calls e-mail, fulfilment and loyalty over HTTP, as it always did.',
  );
  view.say('Each order writes one event in its own transaction. No consumer uses it yet.');
  await forSeconds(6);

  view.chapter('2. Answers get lost');
  view.say(
    'The network drops one answer in ten after the work was done. The calls are made again; the services know what they have done.',
  );
  for (const service of calledServices) wires[service].lose({ answers: 0.1 });
  await forSeconds(5);
  for (const service of calledServices) wires[service].lose({});

  view.chapter('3. E-mail goes down, and orders go on');
  view.say(`${end} the e-mail service.`);
  const ordersBefore = watch.standing?.orders ?? 0;
  await world.killEmail();
  await forSeconds(6);
  const owedDuringOutage = await owedConfirmations(world.shop);
  view.say(
    `${(watch.standing?.orders ?? 0) - ordersBefore} orders were placed without it; ${owedDuringOutage.length} confirmations are owed. It comes back.`,
  );
  await world.startEmail();
  await until(
    'the owed confirmations',
    async () => (await confirmed(world.databases.email, owedDuringOutage)) > owedDuringOutage.length / 2,
  );
  view.say('The owed calls are made again, by themselves; more than half of them are done.');

  view.chapter('4. E-mail moves to events, goes back, and moves again, while orders flow');
  await switchTo('email', 'event', 'the e-mail team is ready');
  await forSeconds(4);
  await switchTo('email', 'rpc', 'one template looks wrong');
  await forSeconds(3);
  await switchTo('email', 'event', 'the template is repaired');
  await forSeconds(2);

  view.chapter('5. Fulfilment moves, with calls missing: what comes early waits');
  view.say(
    'Orders of one customer must keep their order. The network loses calls before they arrive, and then the switch is thrown:',
  );
  view.say('events that follow a missing call are held until that call was made again.');
  wires.fulfilment.lose({ requests: 0.15 });
  await forSeconds(3);
  await switchTo('fulfilment', 'event', 'the warehouse is ready');
  wires.fulfilment.lose({});
  await until('the missing calls', () => owed('fulfilment') === 0 && watch.standing?.held.fulfilment === 0);
  view.say(`${watch.heldEarly.size} events were held early so far, and had their turn.`);

  view.chapter('6. Loyalty moves, its consumer dies, loyalty goes back');
  await switchTo('loyalty', 'event', 'the loyalty team is ready');
  await forSeconds(4);
  view.say(`${end} what consumes for loyalty; events pile up. The team goes back to calls:`);
  await world.killLoyaltyConsumer();
  await forSeconds(2);
  await switchTo('loyalty', 'rpc', 'the consumer died, nobody knows why yet');
  view.say(
    'A call that comes before a missing event is told so (425), and the missing ones are sent by call, in order.',
  );
  await forSeconds(4);
  view.say(
    'The consumer is back: the events that it finds now were already done by call, and are dropped. Forward again:',
  );
  await world.startLoyaltyConsumer();
  await switchTo('loyalty', 'event', 'the consumer was out of memory');
  await forSeconds(2);

  view.chapter('7. A new consumer, with no change upstream');
  view.say('$ turnout consume analytics      from the beginning of the topic');
  await world.startAnalytics();
  await until('analytics to catch up', () => {
    const now = watch.standing;
    return now !== undefined && now.effects.analytics > now.events * 0.95;
  });
  view.say('It has everything since the first order, and goes on.');

  view.chapter('8. The relay dies, its standby takes over');
  const takeoversBefore = await countTakeovers(world.shop);
  view.say(`${end} the relay that leads.`);
  await world.killLeadingRelay();
  await until('the standby', async () => (await countTakeovers(world.shop)) > takeoversBefore);
  view.say('The standby leads. It published the last tick once more, to be safe; the inboxes drop what they know.');
  await forSeconds(2);

  if (load.counts.placed < orders) {
    view.chapter(`9. Until ${orders} orders are placed`);
    await until(`${orders} orders`, () => load.counts.placed >= orders, 180_000);
  }
  await load.stop();
  view.chapter('The shop closes; everything comes to rest');
  // What is not there by then counts as lost.
  await until('everything to come to rest', () => isSettled(world), 60_000).catch((error: unknown) => {
    signal.throwIfAborted();
    view.say(error instanceof Error ? error.message : String(error));
  });
  return {
    owedDuringOutage,
    faults: world.kills
      ? { emailKilled: 1, consumerKilled: 1, relayKilled: 1 }
      : { emailStopped: 1, consumerStopped: 1, relayStopped: 1 },
  };
}
