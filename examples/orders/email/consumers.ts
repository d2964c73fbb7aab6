import type { Pool } from 'pg';
import { defineConsumer, on } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { OrderPlaced } from '../events.ts';
import type { Mailbox } from './mailbox.ts';
import { eventTemplate } from './template.ts';

/** The same effect as POST /confirmations, from an event; or so the team believes. */
export const emailConsumer = (pool: Pool, mailbox: Mailbox, release: string) =>
  defineConsumer(pgDatabase(pool), {
    name: 'email',
    // A new mailer must not mail all history.
    from: 'now',
    inSwitchover: [OrderPlaced],
    handlers: [on(OrderPlaced, async (event) => void (await mailbox.confirm(event.data, eventTemplate(release))))],
  });
