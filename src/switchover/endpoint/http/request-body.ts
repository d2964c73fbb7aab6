import type { IncomingMessage } from 'node:http';
import { requestTooLarge } from '../../calls/given-up.ts';

/**
 * What tells one request's body from another's: the parsed JSON, or the bytes of anything else. After a body parser it is
 * there already; before one, the bytes are read and put back for the parser to find.
 */
export async function requestBody(
  request: IncomingMessage & { readonly body?: unknown },
  maxBytes: number,
): Promise<unknown> {
  if (request.body !== undefined && !isPlaceholder(request)) return request.body;
  if (request.readableEnded || (request.complete && request.readableLength === 0)) return '';
  const bytes = await peek(request, maxBytes);
  return comparable(bytes, request.headers);
}

/** Body parsers of Express 4 leave an empty object where they have parsed nothing. */
function isPlaceholder({ body, readableDidRead }: IncomingMessage & { readonly body?: unknown }): boolean {
  return !readableDidRead && typeof body === 'object' && body !== null && Object.keys(body).length === 0;
}

/** JSON as it is parsed, so that spaces make no other body of it; anything else, also what is compressed, as its bytes. */
export function comparable(
  bytes: Buffer,
  headers: { readonly 'content-type'?: string | undefined; readonly 'content-encoding'?: string | undefined },
): unknown {
  const isJson = /^application\/(?:[\w.+-]+\+)?json\b/i.test(headers['content-type'] ?? '');
  if (!isJson || headers['content-encoding'] !== undefined) return bytes;
  try {
    return JSON.parse(bytes.toString()) as unknown;
  } catch {
    return bytes;
  }
}

/** Reads a request to its end and puts all of it back, so that whoever reads next finds it untouched. */
function peek(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  return new Promise((resolve, reject) => {
    const done = (): void => {
      request.off('readable', onReadable).off('error', fail).off('close', onClose).off('end', onEnd);
    };
    const fail = (error: Error): void => {
      done();
      reject(error);
    };
    const onClose = (): void => fail(new Error('The connection was closed before the request was complete.'));
    const onEnd = (): void => {
      done();
      resolve(Buffer.concat(chunks));
    };
    const onReadable = (): void => {
      for (let chunk = request.read() as Buffer | null; chunk !== null; chunk = request.read() as Buffer | null) {
        chunks.push(chunk);
        length += chunk.length;
        if (length > maxBytes) return fail(requestTooLarge(maxBytes));
      }
      // `complete`: the parser has seen the end. `end` itself is emitted a turn later, and not while bytes are there to be read.
      if (!request.complete) return;
      done();
      const all = Buffer.concat(chunks);
      if (all.length > 0) request.unshift(all);
      resolve(all);
    };
    request.on('readable', onReadable).on('error', fail).on('close', onClose).on('end', onEnd);
  });
}
