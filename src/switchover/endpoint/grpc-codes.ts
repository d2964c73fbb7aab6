// gRPC's status codes and the HTTP statuses that the gate thinks in. The table is the one of google.rpc.Code, but where that
// would say more than the code does:
//
//   CANCELLED, ABORTED      503   of the moment; an `isDefinitive` might take 499 and 409 for refusals
//   FAILED_PRECONDITION     412   not 400, so that it can be told from INVALID_ARGUMENT
//   OUT_OF_RANGE            416   the same
//
// The gate's own refusals have codes of their own. An answer says by `turnout-error` that it is one.

const statusOfCode: Readonly<Record<number, number>> = {
  0: 200, // OK
  1: 503, // CANCELLED
  2: 500, // UNKNOWN: what a handler gives that throws
  3: 400, // INVALID_ARGUMENT
  4: 504, // DEADLINE_EXCEEDED
  5: 404, // NOT_FOUND
  6: 409, // ALREADY_EXISTS
  7: 403, // PERMISSION_DENIED
  8: 429, // RESOURCE_EXHAUSTED
  9: 412, // FAILED_PRECONDITION
  10: 503, // ABORTED
  11: 416, // OUT_OF_RANGE
  12: 501, // UNIMPLEMENTED
  13: 500, // INTERNAL
  14: 503, // UNAVAILABLE
  15: 500, // DATA_LOSS
  16: 401, // UNAUTHENTICATED
};

const codeOfRefusal: Readonly<Record<number, number>> = {
  400: 3, // INVALID_ARGUMENT
  401: 16, // UNAUTHENTICATED
  409: 10, // ABORTED: running
  422: 6, // ALREADY_EXISTS: known with another message
  425: 11, // OUT_OF_RANGE: early
  428: 9, // FAILED_PRECONDITION: without call headers
  503: 14, // UNAVAILABLE
};
const refusalOfCode = new Map(Object.entries(codeOfRefusal).map(([status, code]) => [code, Number(status)]));

/**
 * The status by which the gate judges a gRPC code: of a handler's answer, or with `byGate` (the answer carries
 * `turnout-error`) of the gate's own.
 */
export function statusOfGrpcCode(code: number, byGate = false): number {
  return (byGate ? refusalOfCode.get(code) : undefined) ?? statusOfCode[code] ?? 500;
}

/**
 * The codes that refuse for good: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE. Unlike HTTP's statuses these are
 * never of anything in front: gRPC's libraries don't give them themselves (grpc/doc/statuscodes.md), and a lock that was lost is ABORTED.
 */
const definitive: ReadonlySet<number> = new Set([3, 5, 6, 9, 11]);

export const isDefinitiveCode = (code: number): boolean => definitive.has(code);

/** The gRPC code with which the gate itself refuses, or with which a refusal is told that no handler gave. */
export function grpcCodeOfStatus(status: number): number {
  if (status >= 200 && status < 300) return 0;
  return codeOfRefusal[status] ?? (status >= 400 && status < 500 ? 9 : 14);
}

/**
 * For `isDefinitive` of an endpoint that speaks gRPC or Connect: which codes refuse the effect for good. Give all of them;
 * CANCELLED, ABORTED, UNAVAILABLE and the codes of failures never do. By default INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS,
 * FAILED_PRECONDITION and OUT_OF_RANGE do.
 *
 * @example
 * createEndpoint({ …, isDefinitive: definitiveCodes([status.NOT_FOUND, status.PERMISSION_DENIED]) });
 */
export function definitiveCodes(codes: readonly number[]): (status: number) => boolean {
  const statuses = new Set(codes.map((code) => statusOfGrpcCode(code)));
  return (status) => statuses.has(status);
}
