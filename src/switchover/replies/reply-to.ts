/** Says which effect a reply event answers. The publisher's own header: not a reserved one, so any language may set it. */
export const replyHeader = 'turnout-reply-to';

/**
 * The options with which a consumer publishes its reply, in the transaction of the effect. Takes what its handler was given;
 * in an old endpoint, `{ effectKey }` from the request's Idempotency-Key.
 *
 * @example
 * on(OrderPlaced, async (event, context) => {
 *   await send(context.tx, event.data);
 *   await turnout.publish(context.tx, ConfirmationSent, { orderId: event.data.orderId }, replyTo(context));
 * });
 */
export function replyTo({ effectKey }: { readonly effectKey: string }): {
  readonly headers: Readonly<Record<string, string>>;
} {
  return { headers: { [replyHeader]: effectKey } };
}
