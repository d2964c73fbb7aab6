import { status } from '@grpc/grpc-js';
import { describe, expect, test } from 'vitest';
import { definitiveCodes, grpcCodeOfStatus, isDefinitiveCode, statusOfGrpcCode } from '../../src/switchover/index.ts';

const codes = Object.entries(status).filter((entry): entry is [string, number] => typeof entry[1] === 'number');
const refusals = ['INVALID_ARGUMENT', 'NOT_FOUND', 'ALREADY_EXISTS', 'FAILED_PRECONDITION', 'OUT_OF_RANGE'];

describe('a code of a handler', () => {
  test.each(codes)('%s (%i) refuses for good only if nothing about the moment can change it', (name, code) => {
    const like = statusOfGrpcCode(code);
    const refuses = like >= 400 && like < 500 && isDefinitiveCode(code);
    expect({ name, refuses }).toEqual({ name, refuses: refusals.includes(name) });
    expect(like >= 200 && like < 300).toBe(name === 'OK');
  });

  test('can be made definitive, with those of the caller’s rights and no failure', () => {
    const isDefinitive = definitiveCodes([status.PERMISSION_DENIED, status.NOT_FOUND]);
    const refusing = codes.filter(([, code]) => {
      const like = statusOfGrpcCode(code);
      return like >= 400 && like < 500 && isDefinitive(like);
    });
    expect(refusing.map(([name]) => name)).toEqual(['NOT_FOUND', 'PERMISSION_DENIED']);
  });
});

test.each([400, 401, 409, 422, 425, 428, 503])('the gate’s own %i is known again by the caller', (refused) => {
  expect(statusOfGrpcCode(grpcCodeOfStatus(refused), true)).toBe(refused);
});

test('a code that nobody knows is a failure', () => {
  expect([statusOfGrpcCode(99), statusOfGrpcCode(99, true)]).toEqual([500, 500]);
});
