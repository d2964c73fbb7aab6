import {
  Body,
  Catch,
  Controller,
  ForbiddenException,
  HttpException,
  Module,
  Post,
  Res,
  StreamableFile,
  UseFilters,
  UseGuards,
  UseInterceptors,
  UsePipes,
} from '@nestjs/common';
import type {
  ArgumentsHost,
  CallHandler,
  CanActivate,
  ExecutionContext,
  NestInterceptor,
  PipeTransform,
  Type,
} from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import { Test } from '@nestjs/testing';
import type { Pool } from 'pg';
import { finalize, map } from 'rxjs';
import { afterEach, describe, expect, test } from 'vitest';
import { createEndpoint } from 'turnout';
import type { Endpoint } from 'turnout';
import { InjectTurnout, SwitchedOver, TURNOUT, TurnoutModule } from 'turnout/nestjs';
import { joinPool, pgDatabase } from 'turnout/pg';
import { service } from '../../src/lifecycle/index.ts';
import { metadataOfCall } from '../contracts/endpoint.ts';
import { waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Puts decorators on a method: this file is run as it is. */
function decorate(type: Type, method: string, parameters: ParameterDecorator[], decorators: MethodDecorator[]): void {
  const prototype = type.prototype as object;
  for (const [index, decorator] of parameters.entries()) decorator(prototype, method, index);
  const descriptor = Object.getOwnPropertyDescriptor(prototype, method)!;
  for (const decorator of decorators) decorator(prototype, method, descriptor);
}

async function mail(): Promise<{ pool: Pool; endpoint: Endpoint; outcomes: () => Promise<string[]> }> {
  const created = await database({ template: migrated('consumer') });
  const pool = joinPool(created.pool());
  await pool.query('create table mail (order_id text)');
  return {
    pool,
    endpoint: createEndpoint({ consumer: 'email', database: pgDatabase(pool), order: 'none' }),
    outcomes: async () =>
      (await pool.query<{ outcome: string }>('select outcome from turnout.inbox')).rows.map(({ outcome }) => outcome),
  };
}

async function serve(module: Type): Promise<string> {
  const app = await NestFactory.create(module, new ExpressAdapter(), { logger: false, forceCloseConnections: true });
  closers.push(() => app.close());
  await app.listen(0, '127.0.0.1');
  return app.getUrl();
}

async function post(url: string, headers: Record<string, string>, body: unknown) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  return {
    status: response.status,
    outcome: response.headers.get('turnout-outcome'),
    error: response.headers.get('turnout-error'),
    type: response.headers.get('content-type'),
    text,
  };
}

describe('a switched-over method', () => {
  const MAIL = Symbol('mail endpoint');

  /** Guard, pipe and filter of an application, around a method whose endpoint is found by its token. */
  async function application() {
    const { pool, endpoint, outcomes } = await mail();
    class TokenGuard implements CanActivate {
      canActivate(context: ExecutionContext): boolean {
        const { headers } = context.switchToHttp().getRequest<{ headers: { authorization?: string } }>();
        if (headers.authorization !== 'Bearer good') throw new ForbiddenException();
        return true;
      }
    }
    class OrderPipe implements PipeTransform {
      transform(order: { orderId?: string }): { orderId: string } {
        if (order.orderId === undefined) throw new HttpException('no order', 400);
        return { orderId: order.orderId.toUpperCase() };
      }
    }
    class Problem {
      catch(error: HttpException, host: ArgumentsHost): void {
        const response = host.switchToHttp().getResponse<{ status(code: number): { json(body: unknown): void } }>();
        response.status(error.getStatus()).json({ problem: error.message });
      }
    }
    Catch(HttpException)(Problem);
    class MailController {
      calls = 0;
      async send({ orderId }: { orderId: string }): Promise<unknown> {
        this.calls++;
        await pool.query('insert into mail values ($1)', [orderId]);
        if (orderId === 'SOLD OUT') throw new HttpException('sold out', 422);
        if (orderId === 'FILE')
          return new StreamableFile(Buffer.from('%PDF'), { type: 'application/pdf', disposition: 'inline' });
        return { sent: orderId };
      }
    }
    decorate(
      MailController,
      'send',
      [Body()],
      [Post('mail'), SwitchedOver(MAIL), UseGuards(TokenGuard), UsePipes(OrderPipe), UseFilters(Problem)],
    );
    Controller()(MailController);
    class App {}
    Module({ controllers: [MailController], providers: [{ provide: MAIL, useValue: endpoint }] })(App);
    const url = `${await serve(App)}/mail`;
    return {
      send: (headers: Record<string, string>, order: unknown) => post(url, headers, order),
      outcomes,
      mails: async () =>
        (await pool.query<{ order_id: string }>('select order_id from mail')).rows.map((row) => row.order_id),
    };
  }

  test('keeps its pipes, and its file for a repeat', async () => {
    const app = await application();
    const [headers, file] = [metadataOfCall(), metadataOfCall()];
    const first = await app.send(headers, { orderId: 'a' });
    expect(first).toMatchObject({ status: 201, outcome: 'applied', text: '{"sent":"A"}' });
    expect(await app.send(headers, { orderId: 'a' })).toEqual({ ...first, outcome: 'duplicate' });
    const sent = await app.send(file, { orderId: 'file' });
    expect(sent).toMatchObject({ status: 201, outcome: 'applied', type: 'application/pdf', text: '%PDF' });
    expect(await app.send(file, { orderId: 'file' })).toEqual({ ...sent, outcome: 'duplicate' });
    expect(await app.mails()).toEqual(['A', 'FILE']);
  });

  test('refuses by an HttpException of the method or a pipe, in the form that its filter gives', async () => {
    const app = await application();
    for (const [order, status, problem] of [
      [{ orderId: 'sold out' }, 422, 'sold out'],
      [{}, 400, 'no order'],
    ] as const) {
      const headers = metadataOfCall();
      const first = await app.send(headers, order);
      expect(first).toMatchObject({ status, outcome: 'rejected', text: JSON.stringify({ problem }) });
      expect(await app.send(headers, order)).toEqual({ ...first, outcome: 'duplicate' });
    }
    expect({ mails: await app.mails(), outcomes: await app.outcomes() }).toEqual({
      mails: [],
      outcomes: ['rejected', 'rejected'],
    });
  });

  test('has no outcome when a guard refuses: it comes before the gate', async () => {
    const app = await application();
    const headers = metadataOfCall();
    expect(await app.send({ ...headers, authorization: 'Bearer bad' }, { orderId: 'a' })).toMatchObject({
      status: 403,
      outcome: null,
      error: null,
    });
    expect(await app.outcomes()).toEqual([]);
    expect(await app.send(headers, { orderId: 'a' })).toMatchObject({ status: 201, outcome: 'applied' });
  });

  test('gives a repeat what went out: what an interceptor around it hides stays hidden', async () => {
    const { pool, endpoint } = await mail();
    class User {
      id = 1;
      password = 'secret';
    }
    const seen: unknown[] = [];
    // As ClassSerializerInterceptor does it: by the class of what the method returned.
    class Hiding implements NestInterceptor {
      intercept(_context: ExecutionContext, next: CallHandler) {
        const hide = (value: unknown): unknown => (value instanceof User ? { id: value.id } : value);
        return next.handle().pipe(
          map(hide),
          finalize(() => seen.push('finalized')),
        );
      }
    }
    class Users {
      have(): User {
        return new User();
      }
    }
    decorate(Users, 'have', [], [Post('mail'), SwitchedOver(endpoint)]);
    UseInterceptors(Hiding)(Users);
    Controller()(Users);
    class App {}
    Module({ controllers: [Users] })(App);
    const url = `${await serve(App)}/mail`;
    const headers = metadataOfCall();
    const first = await post(url, headers, {});
    expect(first).toMatchObject({ status: 201, outcome: 'applied', text: '{"id":1}' });
    expect(await post(url, headers, {})).toEqual({ ...first, outcome: 'duplicate' });
    expect(JSON.stringify((await pool.query('select answer from turnout.inbox')).rows)).not.toContain('secret');
    await waitFor(() => seen.length === 2);
  });

  test('does not send its answer itself', async () => {
    const { endpoint } = await mail();
    class Own {
      send(response: { json(body: unknown): void }): void {
        response.json({});
      }
    }
    expect(() => decorate(Own, 'send', [Res()], [Post('mail'), SwitchedOver(endpoint)])).toThrow(
      expect.objectContaining({ code: 'TURNOUT_DEFINITION_INVALID', details: { path: 'Own.send' } }),
    );
    expect(() =>
      decorate(Own, 'send', [Res({ passthrough: true })], [Post('mail'), SwitchedOver(endpoint)]),
    ).not.toThrow();
  });
});

describe('the module', () => {
  const told: string[] = [];
  afterEach(() => void told.splice(0));

  const telling = (name: string, broken = new Promise<never>(() => undefined)) =>
    service(name, async (signal, ready) => {
      told.push(`${name} starts`);
      ready();
      await Promise.race([new Promise((resolve) => signal.addEventListener('abort', resolve)), broken]);
      told.push(`${name} stops`);
    });

  class Resource {
    onApplicationShutdown(): void {
      told.push('database closes');
    }
  }
  class DatabaseModule {}
  Module({ providers: [Resource], exports: [Resource] })(DatabaseModule);

  test('gives what to publish with everywhere, and ends its services before what they stand on', async () => {
    class Feature {
      readonly turnout: unknown;
      constructor(turnout: unknown) {
        this.turnout = turnout;
      }
    }
    InjectTurnout()(Feature, undefined, 0);
    class FeatureModule {}
    Module({ providers: [Feature] })(FeatureModule);
    const turnout = { close: () => Promise.resolve(void told.push('turnout closes')) };
    class App {}
    Module({
      imports: [
        FeatureModule,
        TurnoutModule.forRootAsync({
          imports: [DatabaseModule],
          inject: [Resource],
          useFactory: (resource: Resource) => {
            expect(resource).toBeInstanceOf(Resource);
            return { turnout, services: [telling('keeper'), telling('relay')] };
          },
        }),
      ],
    })(App);
    const module = await Test.createTestingModule({ imports: [App] }).compile();
    expect(told).toEqual([]);
    await module.init();
    expect(module.get(Feature, { strict: false }).turnout).toBe(turnout);
    expect(module.get(TURNOUT, { strict: false })).toBe(turnout);
    expect(told).toEqual(['keeper starts', 'relay starts']);
    await module.close();
    expect(told.splice(0)).toEqual([
      'keeper starts',
      'relay starts',
      'relay stops',
      'keeper stops',
      'turnout closes',
      'database closes',
    ]);
  });

  test('does not let an application start whose service can’t, and tells of one that ends by itself', async () => {
    const broken = service('relay', () => Promise.reject(new Error('no database')));
    const failing = await Test.createTestingModule({
      imports: [TurnoutModule.forRoot({ services: [telling('keeper'), broken] })],
    }).compile();
    await expect(failing.init()).rejects.toThrow('no database');
    expect(told.splice(0)).toEqual(['keeper starts', 'keeper stops']);

    let breakIt!: (error: Error) => void;
    const breaks = new Promise<never>((_, reject) => (breakIt = reject));
    const failures: unknown[] = [];
    const module = await Test.createTestingModule({
      imports: [
        TurnoutModule.forRoot({ services: [telling('relay', breaks)], onFailure: (error) => failures.push(error) }),
      ],
    }).compile();
    await module.init();
    closers.push(() => module.close());
    breakIt(new Error('the database is gone'));
    await waitFor(() => failures.length === 1);
    expect(failures).toMatchObject([{ message: 'the database is gone' }]);
  });
});
