import type { Pool } from 'pg';
import type { Alert, Finding, ShadowReport, Stage } from 'turnout';
import type { Wire } from './wire.ts';

/** The services that the shop used to call, and still calls in stage `rpc`. */
export const calledServices = ['email', 'fulfilment', 'loyalty'] as const;
export type CalledService = (typeof calledServices)[number];
export type Consumer = CalledService | 'analytics';
export const consumers: readonly Consumer[] = [...calledServices, 'analytics'];

/** Names of the switchovers, as shop/switchovers.ts defines them. */
export const switchoverOf: Readonly<Record<CalledService, string>> = {
  email: 'order-confirmation',
  fulfilment: 'order-fulfilment',
  loyalty: 'order-points',
};

/** Where to look at what happened, as psql commands. */
export function placesToLook(urlOf: (owner: 'shop' | Consumer) => string): string[] {
  const tables = {
    shop: '"order", customer; turnout.outbox, turnout.switchover_history, turnout.switchover_check, turnout.relay_tick',
    email:
      'mail; turnout.inbox (path: which way each effect came), turnout.shadow_mismatch, turnout.shadow_example, turnout.alarm',
    fulfilment: 'shipment_step; turnout.inbox, turnout.gate (how far each customer is)',
    loyalty: 'ledger; turnout.inbox, turnout.gate',
    analytics: 'fact; turnout.position',
  };
  return (['shop', ...consumers] as const).flatMap((owner) => [`# ${owner}: ${tables[owner]}`, `psql ${urlOf(owner)}`]);
}

/** An order of the reader's own. */
export function placeOneYourself(shopUrl: string): string {
  const order = JSON.stringify({ customerId: 'you', email: 'you@example.org', item: 'lamp', quantity: 2 });
  return `curl -X POST ${shopUrl}/orders -H 'content-type: application/json' -d '${order}'`;
}

export interface TopicCount {
  readonly records: number;
  readonly distinct: number;
}

/** What is asked of `turnout switch`. */
export interface StageRequest {
  readonly stage: Stage;
  readonly reason: string;
  /** With `ramp`. */
  readonly percent?: number;
  readonly force?: boolean;
  /** With `rpc`. */
  readonly redrive?: boolean;
}

/** The request as it is typed after `turnout switch <name>`. */
export function switchArguments({ stage, reason, percent, force, redrive }: StageRequest): string[] {
  return [
    stage,
    ...(percent === undefined ? [] : ['--percent', String(percent)]),
    ...(redrive === true ? ['--redrive'] : []),
    ...(force === true ? ['--force'] : []),
    '--reason',
    reason,
  ];
}

/** Why a stage was not set. */
export interface Refusal {
  readonly code: string;
  /** What the check found that speaks against it. */
  readonly findings: readonly Finding[];
}

/** All that runs, and what the story may do to it. */
export interface World {
  /** What it is made of, for the title. */
  readonly parts: string;
  readonly broker: { readonly name: string; readonly version: string | undefined };
  readonly shopUrl: string;
  readonly shop: Pool;
  readonly databases: Readonly<Record<Consumer, Pool>>;
  /** The network between the shop and each service. */
  readonly wires: Readonly<Record<CalledService, Wire>>;
  /** Whether processes are really killed; where there is only one, its parts are stopped. */
  readonly kills: boolean;
  /** What this world can't show, and why. */
  readonly skips: readonly string[];
  /** What was posted to the webhook. */
  readonly alerts: readonly Alert[];
  /** Gives why it was refused; undefined: the stage is set. */
  switchTo(service: CalledService, request: StageRequest): Promise<Refusal | undefined>;
  /** `turnout shadow watch`: lets comparisons see what e-mail writes to its table. */
  watchMail(): Promise<void>;
  /** `turnout shadow report` of e-mail. */
  shadowReport(): Promise<ShadowReport>;
  /** Puts another release of e-mail in place: its endpoint, and what consumes. */
  deployEmail(release: string): Promise<void>;
  killEmail(): Promise<void>;
  startEmail(): Promise<void>;
  killLoyaltyConsumer(): Promise<void>;
  startLoyaltyConsumer(): Promise<void>;
  /** Puts another release in place of what consumes for loyalty. */
  deployLoyaltyConsumer(release: string): Promise<void>;
  /** `turnout switch cleanup` of e-mail, the lines to show; undefined where there is no command line. */
  cleanUpEmail(): Promise<readonly string[] | undefined>;
  startAnalytics(): Promise<void>;
  /** Kills the relay that leads; the other one stands by. */
  killLeadingRelay(): Promise<void>;
  /** Reads the whole topic, as any tool would. */
  countTopic(): Promise<TopicCount>;
  /** Commands and addresses for a look at what happened. */
  readonly links: readonly string[];
  /** Ends everything; never rejects. Gives the folder with the logs if they were kept. */
  stop(options: { readonly keepLogs: boolean }): Promise<string | undefined>;
}
