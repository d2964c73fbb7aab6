import type { Order } from '../events.ts';

/** What a customer is told. */
export interface Letter {
  readonly subject: string;
  readonly text: string;
}

export type Template = (order: Order) => Letter;

const letter = (order: Order, cents: number): Letter => ({
  subject: `Your order of ${order.quantity} × ${order.item}`,
  text: `In all ${(cents / 100).toFixed(2)} €.`,
});

/** The old endpoint's: what customers have always got. */
export const confirmation: Template = (order) => letter(order, order.totalCents);

/**
 * The event handler's, which was written anew. Release 1 has a mistake that any review may miss: it leaves out the tax. Stage shadow is
 * there to find it before a customer does.
 */
export function eventTemplate(release: string): Template {
  return release === '1' ? (order) => letter(order, Math.round(order.totalCents / 1.19)) : confirmation;
}
