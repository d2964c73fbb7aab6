import { Metadata } from '@grpc/grpc-js';

/** What gRPC carries as text: printable ASCII. */
const printable = /^[ -~]*$/;

/**
 * Headers of a call, or those that were kept with an answer, as metadata; binary values are base64. What gRPC can't carry
 * (a `tracestate` of somebody's) is left out: Turnout's own headers are always ASCII.
 */
export function metadataOf(headers: Readonly<Record<string, string | readonly string[]>>): Metadata {
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headers)) {
    for (const each of typeof value === 'string' ? [value] : value) {
      if (name.endsWith('-bin')) metadata.add(name, Buffer.from(each, 'base64'));
      else if (printable.test(each)) metadata.add(name, each);
    }
  }
  return metadata;
}

/** All values of each name; binary ones as base64. Names are in lower case already. */
export function valuesOf(metadata: Metadata): Record<string, string | readonly string[]> {
  return Object.fromEntries(
    Object.keys(metadata.getMap()).map((name) => {
      const values = metadata.get(name).map((value) => (typeof value === 'string' ? value : value.toString('base64')));
      return [name, values.length === 1 ? values[0]! : values];
    }),
  );
}

/** One text for each name, as headers of an answer are. */
export function headersOf(metadata: Metadata): Record<string, string> {
  return Object.fromEntries(
    Object.entries(valuesOf(metadata)).map(([name, value]) => [
      name,
      typeof value === 'string' ? value : value.join(', '),
    ]),
  );
}
