import type { Pool } from 'pg';
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

export interface TopicCount {
  readonly records: number;
  readonly distinct: number;
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
  switchTo(service: CalledService, stage: 'rpc' | 'event', reason: string): Promise<void>;
  killEmail(): Promise<void>;
  startEmail(): Promise<void>;
  killLoyaltyConsumer(): Promise<void>;
  startLoyaltyConsumer(): Promise<void>;
  startAnalytics(): Promise<void>;
  /** Kills the relay that leads; the other one stands by. */
  killLeadingRelay(): Promise<void>;
  /** Reads the whole topic, as any tool would. */
  countTopic(): Promise<TopicCount>;
  /** Where the report and, if kept, logs are written. */
  readonly reportFolder: string;
  /** Commands and addresses for a look at what happened. */
  readonly links: readonly string[];
  /** Ends everything; never rejects. Gives the folder with the logs if they were kept. */
  stop(options: { readonly keepLogs: boolean }): Promise<string | undefined>;
}
