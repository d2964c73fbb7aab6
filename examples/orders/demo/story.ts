// The story that the demo tells. Everything in it is done to the real processes while orders flow.
import { confirmed, countTakeovers, isSettled, owedConfirmations } from './audit.ts';
import { finishEmail, rampEmail, rehearseEmail } from './story-email.ts';
import type { ShadowTold } from './story-email.ts';
import { moveFulfilment, moveLoyaltyAndBack, stepBackByItself } from './story-ordered.ts';
import { tellerOf } from './teller.ts';
import type { Stage, Teller } from './teller.ts';
import { calledServices } from './world.ts';

export interface Told {
  /** Orders whose confirmation could not be sent while e-mail was down. */
  readonly owedDuringOutage: readonly string[];
  readonly shadow: ShadowTold;
  /** What was ended on purpose, and how often. */
  readonly faults: Readonly<Record<string, number>>;
}

export async function tellStory(stage: Stage): Promise<Told> {
  const teller = tellerOf(stage);
  await callEverything(teller);
  const owedDuringOutage = await loseEmail(teller);
  const shadow = await rehearseEmail(teller);
  await rampEmail(teller);
  await moveFulfilment(teller);
  await moveLoyaltyAndBack(teller);
  await stepBackByItself(teller);
  await addAnalyticsAndLoseRelay(teller);
  await finishEmail(teller);
  await comeToRest(teller);
  return {
    owedDuringOutage,
    shadow,
    faults: stage.world.kills
      ? { emailKilled: 1, consumerKilled: 1, relayKilled: 1, failingReleases: 2 }
      : { emailStopped: 1, consumerStopped: 1, relayStopped: 1, failingReleases: 2 },
  };
}

async function callEverything({ world: { wires }, view, forSeconds }: Teller): Promise<void> {
  view.chapter('1. Everything is a call');
  view.say(
    'The shop places, changes and cancels orders; after each it calls e-mail, fulfilment and loyalty over HTTP, as it always did.',
  );
  view.say('Each order writes one event in its own transaction. No consumer uses it yet.');
  await forSeconds(5);

  view.chapter('2. Answers get lost');
  view.say(
    'The network drops one answer in ten after the work was done. The calls are made again; the services know what they have done.',
  );
  for (const service of calledServices) wires[service].lose({ answers: 0.1 });
  await forSeconds(4);
  for (const service of calledServices) wires[service].lose({});
}

async function loseEmail({ world, view, watch, end, forSeconds, until }: Teller): Promise<readonly string[]> {
  view.chapter('3. E-mail goes down, and orders go on');
  view.say(`${end} the e-mail service.`);
  const ordersBefore = watch.standing?.orders ?? 0;
  await world.killEmail();
  await forSeconds(5);
  const owed = await owedConfirmations(world.shop);
  view.say(
    `${(watch.standing?.orders ?? 0) - ordersBefore} orders were placed without it; ${owed.length} confirmations are owed. It comes back.`,
  );
  await world.startEmail();
  await until('the owed confirmations', async () => (await confirmed(world.databases.email, owed)) > owed.length / 2);
  view.say('The owed calls are made again, by themselves; more than half of them are done.');
  return owed;
}

async function addAnalyticsAndLoseRelay({ world, view, watch, end, forSeconds, until }: Teller): Promise<void> {
  view.chapter('9. A new consumer, with no change upstream; and the relay dies');
  view.say('$ turnout consume analytics      from the beginning of the topic');
  await world.startAnalytics();
  await until(
    'analytics to catch up',
    () => {
      const now = watch.standing;
      return now !== undefined && now.effects.analytics > now.events * 0.95;
    },
    180_000,
  );
  view.say('It has everything since the first order, and goes on.');
  const takeoversBefore = await countTakeovers(world.shop);
  view.say(`${end} the relay that leads.`);
  await world.killLeadingRelay();
  await until('the standby', async () => (await countTakeovers(world.shop)) > takeoversBefore);
  view.say('The standby leads. It published the last tick once more, to be safe; the inboxes drop what they know.');
  await forSeconds(2);
}

async function comeToRest({ world, load, view, signal, orders, until }: Teller): Promise<void> {
  if (load.counts.placed < orders) {
    view.chapter(`Until ${orders} orders are placed`);
    await until(`${orders} orders`, () => load.counts.placed >= orders, 180_000);
  }
  await load.stop();
  view.chapter('The shop closes; everything comes to rest');
  // What is not there by then counts as lost.
  await until('everything to come to rest', () => isSettled(world), 60_000).catch((error: unknown) => {
    signal.throwIfAborted();
    view.say(error instanceof Error ? error.message : String(error));
  });
}
