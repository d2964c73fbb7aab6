import { create, toBinary } from '@bufbuild/protobuf';
import { ConnectError } from '@connectrpc/connect';

/** The content type of an error that is kept for repeats. */
export const kindOfError = 'application/connect-error+json';

interface KeptError {
  readonly message: string;
  /** Base64. */
  readonly details: readonly { readonly type: string; readonly value: string }[];
}

/** An error as it is kept, with its details. */
export function describeError({ rawMessage, details }: ConnectError): Buffer {
  const kept: KeptError = {
    message: rawMessage,
    details: details.map((detail) => {
      const bytes = 'desc' in detail ? toBinary(detail.desc, create(detail.desc, detail.value)) : detail.value;
      return {
        type: 'desc' in detail ? detail.desc.typeName : detail.type,
        value: Buffer.from(bytes).toString('base64'),
      };
    }),
  };
  return Buffer.from(JSON.stringify(kept));
}

/** The error that was kept; without text and details if they were too large. */
export function rebuildError(code: number, body: Buffer, metadata: Headers): ConnectError {
  const { message, details } = (
    body.length === 0 ? { message: '', details: [] } : JSON.parse(body.toString())
  ) as KeptError;
  const error = new ConnectError(message, code, metadata);
  error.details = details.map(({ type, value }) => ({ type, value: new Uint8Array(Buffer.from(value, 'base64')) }));
  return error;
}
