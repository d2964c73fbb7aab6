// An answer of a controller's method, as it is kept for repeats, and back: what the method returned or threw, and not what became
// of it, so that outer interceptors and exception filters do their part for a repeat too.
import { HttpException, StreamableFile } from '@nestjs/common';
import { TurnoutError } from '../../src/errors/index.ts';
import type { GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';

type StreamableFileOptions = NonNullable<ConstructorParameters<typeof StreamableFile>[1]>;

/** What a method returned or threw. `file`: the bytes of a file, which can be read only once. */
export type Given = { readonly value: unknown; readonly file?: Buffer } | { readonly error: unknown };

/** Says how `body` is to be read: these are kept with the answer, and never sent. */
const kindHeader = 'nest-answer';
const fileHeader = 'nest-file';
type Kind = 'exception' | 'json' | 'text' | 'bytes' | 'file' | 'nothing';

/** What was returned, a file read to its end. Throws what `tooLarge` makes when there are more than `maxBytes`. */
export async function whole(
  value: unknown,
  maxBytes: number,
  tooLarge: () => Error,
  signal: AbortSignal,
): Promise<Given> {
  if (!(value instanceof StreamableFile)) {
    if (typeof (value as { pipe?: unknown } | null | undefined)?.pipe === 'function')
      throw new TurnoutError(
        'TURNOUT_ANSWER_TOO_LARGE',
        'The method answers with a stream of nobody knows how many bytes: return a StreamableFile, which is read whole.',
      );
    return { value };
  }
  const stream = value.getStream();
  const stop = (): void => void stream.destroy();
  signal.addEventListener('abort', stop, { once: true });
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    // Leaving the loop early destroys the stream.
    for await (const chunk of stream) {
      const bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk as string);
      chunks.push(bytes);
      length += bytes.length;
      if (length > maxBytes) throw tooLarge();
    }
  } finally {
    signal.removeEventListener('abort', stop);
  }
  const file = Buffer.concat(chunks);
  return { value: new StreamableFile(file, { ...optionsOf(value), length }), file };
}

function optionsOf(file: StreamableFile): StreamableFileOptions {
  const { type, disposition } = file.getHeaders();
  return { ...(type === undefined ? {} : { type }), ...(disposition === undefined ? {} : { disposition }) };
}

/** How it is kept. `status` is the one that Nest or the method has set; an exception has its own. */
export function describe(
  given: Given,
  status: number,
  headers: Readonly<Record<string, string | readonly string[]>>,
): HandlerAnswer {
  if ('error' in given) {
    const { status: own, response } = exceptionOf(given.error);
    return {
      status: own,
      headers: { ...headers, [kindHeader]: 'exception' },
      body: Buffer.from(JSON.stringify(response)),
    };
  }
  const { value, file } = given;
  const [kind, body]: [Kind, Buffer] = file === undefined ? bytesOf(value) : ['file', file];
  return {
    status,
    headers: {
      ...headers,
      [kindHeader]: kind,
      ...(value instanceof StreamableFile ? { [fileHeader]: JSON.stringify(optionsOf(value)) } : {}),
    },
    body,
  };
}

/** As Nest's own filter reads an error. */
function exceptionOf(error: unknown): { status: number; response: unknown } {
  if (error instanceof HttpException) return { status: error.getStatus(), response: error.getResponse() };
  const { statusCode, message } = (error ?? {}) as { statusCode?: unknown; message?: unknown };
  if (typeof statusCode === 'number' && typeof message === 'string')
    return { status: statusCode, response: { statusCode, message } };
  return { status: 500, response: {} };
}

function bytesOf(value: unknown): [Kind, Buffer] {
  if (value === undefined || value === null) return ['nothing', Buffer.alloc(0)];
  if (value instanceof Uint8Array) return ['bytes', Buffer.from(value)];
  if (typeof value === 'string') return ['text', Buffer.from(value)];
  return ['json', Buffer.from(JSON.stringify(value) ?? '')];
}

/** A kept answer, or the gate's own, as what the method would have returned or thrown. */
export function keptAnswer({ status, headers: all, body }: Extract<GateAnswer, { kind: 'gate' }>): {
  headers: Readonly<Record<string, string | readonly string[]>>;
  result: Given;
} {
  const { [kindHeader]: kind, [fileHeader]: file, ...headers } = all;
  if (kind === undefined) {
    // The gate's own words; Nest writes JSON itself.
    const { 'content-type': _, ...rest } = headers;
    const value = JSON.parse(body.toString()) as Record<string, unknown>;
    return { headers: rest, result: status < 400 ? { value } : { error: new HttpException(value, status) } };
  }
  return { headers, result: valueOf(kind as Kind, body, status, file as string | undefined) };
}

function valueOf(kind: Kind, body: Buffer, status: number, file: string | undefined): Given {
  // Too large to keep: there is no body, whatever it was.
  const empty = body.length === 0;
  switch (kind) {
    case 'exception':
      return { error: new HttpException(empty ? '' : (JSON.parse(body.toString()) as object | string), status) };
    case 'json':
      return { value: empty ? undefined : (JSON.parse(body.toString()) as unknown) };
    case 'text':
      return { value: body.toString() };
    case 'bytes':
      return { value: body };
    case 'file':
      return {
        value: new StreamableFile(body, {
          ...(JSON.parse(file ?? '{}') as StreamableFileOptions),
          length: body.length,
        }),
      };
    case 'nothing':
      return { value: undefined };
  }
}
