// Between the Response of a handler and the answer that a gate holds back.
import { isTurnoutError } from '../../src/errors/index.ts';
import { brokenOff, inTime, tooLarge } from '../../src/switchover/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';

/** The complete answer of a handler; rejects when it takes too long, is too large or breaks off. */
export async function answerOf(
  endpoint: Endpoint<Request>,
  handler: () => Response | Promise<Response>,
): Promise<HandlerAnswer> {
  const { maxAnswerBytes } = endpoint;
  return inTime(endpoint, async (signal) => {
    const response = await handler();
    const body = await bytesOf(response.body, maxAnswerBytes, () => tooLarge(maxAnswerBytes), signal).catch(
      (error: unknown) => {
        throw isTurnoutError(error) ? error : brokenOff(error);
      },
    );
    return { status: response.status, headers: headersOf(response), body };
  });
}

/** Reads a stream to its end, but not beyond `maxBytes`, and not once nobody waits for it: its source is told to stop then. */
export async function bytesOf(
  stream: ReadableStream<Uint8Array> | null,
  maxBytes: number,
  tooMany: () => Error,
  signal?: AbortSignal,
): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  // Leaving the loop cancels the stream.
  for await (const chunk of stream ?? []) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw tooMany();
    signal?.throwIfAborted();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function headersOf({ headers }: Response): Record<string, string | string[]> {
  const cookies = headers.getSetCookie();
  return { ...Object.fromEntries(headers), ...(cookies.length === 0 ? {} : { 'set-cookie': cookies }) };
}

/** Statuses whose responses can't be made with a body, not even an empty one. */
const withoutBody = new Set([101, 204, 205, 304]);

/** What to send. */
export function responseOf(answer: Exclude<GateAnswer, { kind: 'pass' }>): Response {
  const { status, headers, body } =
    answer.kind === 'gate' ? answer : { ...answer.answer, headers: { ...answer.answer.headers, ...answer.headers } };
  const sent = new Headers();
  for (const [name, value] of Object.entries(headers))
    for (const each of typeof value === 'string' ? [value] : value) sent.append(name, each);
  return new Response(withoutBody.has(status) ? null : new Uint8Array(body), { status, headers: sent });
}
