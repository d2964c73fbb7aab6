// Between the Response of a handler and the answer that a gate holds back.
import { brokenOff, tooLarge, tooSlow } from '../../src/switchover/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';

/** The complete answer of a handler; rejects when it takes too long, is too large or breaks off. */
export async function answerOf(
  endpoint: Endpoint<Request>,
  handler: () => Response | Promise<Response>,
): Promise<HandlerAnswer> {
  let late = false;
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      late = true;
      reject(tooSlow(endpoint));
    }, endpoint.handlerTimeoutMs);
  });
  const complete = async (): Promise<HandlerAnswer> => {
    const response = await handler();
    const body = await bytesOf(response.body, endpoint.maxAnswerBytes, () => late).catch((error: unknown) => {
      throw error instanceof TooLong ? tooLarge(endpoint.maxAnswerBytes) : brokenOff(error);
    });
    return { status: response.status, headers: headersOf(response), body };
  };
  try {
    return await Promise.race([complete(), deadline]);
  } finally {
    clearTimeout(timer);
  }
}

class TooLong extends Error {}

/** Reads a stream to its end, but not beyond `maxBytes`, and not once nobody waits for it: its source is told to stop then. */
export async function bytesOf(
  stream: ReadableStream<Uint8Array> | null,
  maxBytes: number,
  isInVain: () => boolean = () => false,
): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  // Leaving the loop cancels the stream.
  for await (const chunk of stream ?? []) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new TooLong(`There are more than ${maxBytes} bytes.`);
    if (isInVain()) throw new Error('Nobody waits for it any more.');
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
