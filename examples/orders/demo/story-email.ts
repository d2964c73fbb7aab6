// E-mail goes through every stage, and shadow finds a wrong template before a customer does.
import type { ShadowReport } from 'turnout';
import { shadowReport } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import type { Teller } from './teller.ts';

export interface ShadowTold {
  /** Decisions that differed while the wrong template was deployed, and how many kinds of difference. */
  readonly mismatches: number;
  readonly groups: number;
  /** Whether the promotion was refused for it. */
  readonly promotionRefused: boolean;
  /** Whether nothing differed any more once the template was repaired, and the promotion was accepted without force. */
  readonly cleanAfterRepair: boolean;
}

export async function rehearseEmail(teller: Teller): Promise<ShadowTold> {
  const { world, view, until, promote, tryTo } = teller;
  view.chapter('4. E-mail is rehearsed in stage shadow: its event handler has a mistake, and no customer sees it');
  view.say(
    'Every mail still comes by call. Beside each, the event handler shows what it would have mailed, and is rolled back.',
  );
  view.say('$ turnout shadow watch mail');
  await world.watchMail();
  await promote('email', { stage: 'shadow', reason: 'the e-mail team is ready to look' });
  const found = (): Promise<ShadowReport> => shadowReport(pgDatabase(world.databases.email), 'email');
  await until('decisions that differ', async () => {
    const { decisions, deliveries } = await found();
    return decisions.mismatched >= 20 && deliveries.arrived >= 20;
  });
  const wrong = await world.shadowReport();
  sayReport(teller, wrong);
  const refusal = await tryTo('email', { stage: 'ramp', percent: 10, reason: 'shall we?' });
  for (const { check, verdict, why } of refusal?.findings ?? []) view.say(`  ${check}: ${verdict}: ${why}`);
  view.say(refusal === undefined ? 'It was NOT refused.' : `Refused: ${refusal.code}.`);

  view.say(
    'The template forgot the tax. Release 2 has it; it takes the place of release 1, in the endpoint and in the consumer.',
  );
  await world.deployEmail('2');
  await until('decisions of the repaired template', async () => {
    const { decisions, deliveries } = await found();
    return decisions.matched >= 65 && deliveries.arrived >= 40;
  });
  const right = await world.shadowReport();
  sayReport(teller, right);
  return {
    mismatches: wrong.decisions.mismatched,
    groups: wrong.groups.length,
    promotionRefused:
      refusal?.code === 'TURNOUT_CHECKS_NOT_READY' && refusal.findings.some(({ check }) => check === 'mismatches'),
    cleanAfterRepair: right.decisions.mismatched === 0 && right.groups.length === 0,
  };
}

function sayReport({ view }: Teller, { deliveries, decisions, groups }: ShadowReport): void {
  view.say('$ turnout shadow report order-confirmation');
  view.say(`  deliveries: ${deliveries.arrived} of ${deliveries.expected} arrived, ${deliveries.missing} missing`);
  view.say(`  decisions: ${decisions.compared} compared, ${decisions.mismatched} mismatched`);
  for (const { fingerprint, count, paths, example } of groups) {
    view.say(`  ${fingerprint}: ${count} × ${paths.join(', ')}`);
    view.say(`    the call did   ${JSON.stringify(example?.expected)}`);
    view.say(`    the event does ${JSON.stringify(example?.actual)}`);
  }
}

export async function rampEmail({ view, promote, forSeconds }: Teller): Promise<void> {
  view.chapter('5. E-mail moves: 10 % of the customers, 50 %, all. Nothing is forced');
  await promote('email', { stage: 'ramp', percent: 10, reason: 'no difference any more' });
  await forSeconds(4);
  await promote('email', { stage: 'ramp', percent: 50, reason: '10 % are fine' });
  await forSeconds(2);
  await promote('email', { stage: 'event', reason: '50 % are fine' });
  await forSeconds(2);
}

export async function finishEmail({ world, watch, view, promote, until }: Teller): Promise<void> {
  view.chapter('10. E-mail is done: no call can come any more, and its code can go');
  await promote('email', { stage: 'done', reason: 'nobody calls the endpoint' });
  const before = watch.standing?.effects.email ?? 0;
  await until('confirmations after done', () => (watch.standing?.effects.email ?? 0) > before + 10);
  view.say('Orders are confirmed as before, by events only. What may be deleted:');
  const lines = await world.cleanUpEmail();
  if (lines === undefined) return;
  view.say('$ turnout switch cleanup order-confirmation --source-folder examples/orders');
  for (const line of lines) view.say(`  ${line}`);
}
