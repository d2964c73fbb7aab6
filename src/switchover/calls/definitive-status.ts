// Which refusals of an old handler count for good. Kept once: the gate, bridges and the examples in other languages go by it.

/**
 * The statuses that say: this request will never be right. A list of what counts, not of what doesn't: a refusal of the moment
 * that is taken for good loses the effect, silently; one for good that is taken for the moment leaves its call owed, where
 * status, checks and the history of the call show it, until the endpoint says in one line what its status means.
 *
 * So these are out, though handlers do refuse for good with them: 402 (a quota, an invoice), 406 and 415 (headers of the caller),
 * 409 and 412 (an optimistic lock, a first attempt that still runs), 423, 424 and 440 (a lock, another request, a session).
 */
const definitive: ReadonlySet<number> = new Set([400, 404, 410, 422]);

/** Whether a refusal counts for good, unless the endpoint says otherwise. 404 only of a handler: a router's says nothing. */
export const isDefinitiveByDefault = (status: number): boolean => definitive.has(status);
