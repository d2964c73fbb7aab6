import type { ServerResponse } from 'node:http';
import type { HandlerAnswer } from '../endpoint.ts';
import { brokenOff, tooLarge } from '../../calls/given-up.ts';

/** A response whose answer is held back. */
export interface HeldResponse {
  /** Resolves when the handler has ended its answer; rejects if it never will. */
  readonly answer: Promise<HandlerAnswer>;
  /**
   * Gives the response back as it was, with the headers that the handler has set. To be called right before the answer is sent, and not
   * sooner: a handler that writes on while the commit runs must not reach the caller.
   */
  release(): void;
}

type Chunk = string | Uint8Array;

/**
 * Holds back what a handler writes to a response, up to `maxBytes`. To the handler the response behaves as if it had been
 * sent: `headersSent` and `writableEnded` say so, headers can't be changed any more, and what comes after the end is refused.
 *
 * That the caller is gone changes nothing: the handler may still be at work, and its effect is kept if it gets to its
 * end. Rolled back in the middle, it would go on to write outside the transaction; and an effect that takes longer
 * than callers wait would never be had.
 */
export function holdResponse(response: ServerResponse, maxBytes: number): HeldResponse {
  const chunks: Buffer[] = [];
  let bytes = 0;
  let sent = false;
  let ended = false;
  let settle!: { resolve: (answer: HandlerAnswer) => void; reject: (error: Error) => void };
  const answer = new Promise<HandlerAnswer>((resolve, reject) => (settle = { resolve, reject }));
  answer.catch(() => undefined);

  function keep(chunk: Chunk, encoding: BufferEncoding | undefined): void {
    const buffer = typeof chunk === 'string' ? Buffer.from(chunk, encoding) : Buffer.from(chunk);
    bytes += buffer.length;
    if (bytes > maxBytes) {
      chunks.length = 0;
      // It goes on writing, perhaps to the database too.
      settle.reject(tooLarge(maxBytes));
    } else chunks.push(buffer);
  }

  const write = (chunk: Chunk, second?: unknown, third?: unknown): boolean => {
    if (ended) {
      afterwards(second, third, new Error('write after end'));
      return false;
    }
    begin();
    keep(chunk, typeof second === 'string' ? (second as BufferEncoding) : undefined);
    afterwards(second, third);
    return true;
  };
  const end = (...args: unknown[]): ServerResponse => {
    const [chunk, second, third] = typeof args[0] === 'function' ? [undefined, args[0]] : args;
    if (ended) return response;
    begin();
    if (chunk !== undefined && chunk !== null)
      keep(chunk as Chunk, typeof second === 'string' ? (second as BufferEncoding) : undefined);
    ended = true;
    const headers = Object.fromEntries(
      Object.entries(response.getHeaders()).map(([name, value]) => [
        name,
        typeof value === 'number' ? String(value) : (value ?? ''),
      ]),
    );
    settle.resolve({ status: response.statusCode, headers, body: Buffer.concat(chunks) });
    afterwards(second, third);
    return response;
  };
  // As Node does: middleware that adds headers at the last moment (`on-headers`) waits for this call.
  const begin = (): void => {
    if (!sent) response.writeHead(response.statusCode);
    sent = true;
  };
  const writeHead = (status: number, ...rest: unknown[]): ServerResponse => {
    if (sent) throw headersSent('write');
    response.statusCode = status;
    if (typeof rest[0] === 'string') response.statusMessage = rest[0];
    for (const [name, value] of pairs(rest.findLast((each) => typeof each === 'object' && each !== null)))
      response.setHeader(name, value);
    sent = true;
    return response;
  };
  const guarded = (name: 'setHeader' | 'setHeaders' | 'appendHeader' | 'removeHeader', verb: string) => {
    const method = response[name].bind(response) as (...args: unknown[]) => unknown;
    return (...args: unknown[]): unknown => {
      if (sent) throw headersSent(verb);
      return method(...args);
    };
  };

  const destroyIt = response.destroy.bind(response);
  // What a stream does to the response it is piped into, when it breaks: there will be no end of this answer.
  const destroy = (error?: Error): ServerResponse => {
    if (!ended) settle.reject(brokenOff(error));
    return destroyIt(error);
  };

  const overridden = {
    write: { value: write },
    end: { value: end },
    writeHead: { value: writeHead },
    flushHeaders: { value: begin },
    setHeader: { value: guarded('setHeader', 'set') },
    setHeaders: { value: guarded('setHeaders', 'set') },
    appendHeader: { value: guarded('appendHeader', 'append') },
    removeHeader: { value: guarded('removeHeader', 'remove') },
    destroy: { value: destroy },
    headersSent: { get: () => sent },
    writableEnded: { get: () => ended },
  };
  // Middleware before this one (compression, for one) may have put methods of its own on the response; it gets them back.
  const before = Object.keys(overridden).map(
    (name) => [name, Object.getOwnPropertyDescriptor(response, name)] as const,
  );
  // Writable: middleware behind the gate (sessions) puts its own in their place, which call them.
  for (const [name, property] of Object.entries(overridden))
    Object.defineProperty(response, name, {
      ...property,
      ...('value' in property ? { writable: true } : {}),
      configurable: true,
    });

  return {
    answer,
    release() {
      for (const [name, property] of before) {
        if (property === undefined) delete (response as unknown as Record<string, unknown>)[name];
        else Object.defineProperty(response, name, property);
      }
    },
  };
}

/** What Node throws at who changes headers that are on their way. */
function headersSent(verb: string): Error {
  return Object.assign(new Error(`Cannot ${verb} headers after they are sent to the client`), {
    code: 'ERR_HTTP_HEADERS_SENT',
  });
}

function afterwards(second: unknown, third: unknown, error?: Error): void {
  const callback = typeof second === 'function' ? second : third;
  if (typeof callback === 'function') queueMicrotask(() => (callback as (error?: Error) => void)(error));
}

/** `writeHead` takes headers as an object, or as a flat list of names and values. */
function pairs(headers: unknown): [string, string | string[]][] {
  if (headers === undefined) return [];
  if (!Array.isArray(headers))
    return Object.entries(headers as Record<string, string | string[]>).filter(([, value]) => value !== undefined);
  const flat = headers.flat() as string[];
  return Array.from({ length: flat.length >> 1 }, (_, index) => [flat[2 * index]!, flat[2 * index + 1]!]);
}

/**
 * Lets a handler that was given up go on in vain: its answer has been given in its place, and an error about that, on a
 * stream that nobody listens to, would end the process.
 */
export function mute(response: ServerResponse): void {
  const silent = (): ServerResponse => response;
  const inert = {
    write: () => true,
    end: silent,
    writeHead: silent,
    flushHeaders: () => undefined,
    setHeader: silent,
    setHeaders: silent,
    appendHeader: silent,
    removeHeader: () => undefined,
  };
  for (const [name, value] of Object.entries(inert))
    Object.defineProperty(response, name, { value, writable: true, configurable: true });
}
