// One PostgreSQL, one Kafka and one Redis for the whole run, each started when the first test file asks for it (over
// HTTP, as test files run in processes of their own) and stopped at the end. See `vitest.ts` for the asking side.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestProject } from 'vitest/node';
import { dropTemplates } from './database.ts';
import { startKafka } from './kafka.ts';
import { startPostgres } from './postgres.ts';
import { startRedis } from './redis.ts';
import type { Part } from './part.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** Where the run's shared parts are asked for. */
    turnoutPartsUrl: string;
  }
}

const starters = { postgres: startPostgres, kafka: startKafka, redis: startRedis };

export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const parts = new Map<string, Promise<Part>>();
  const server = createServer((request, response) => {
    const name = (request.url ?? '').slice(1);
    if (!isPart(name)) {
      response.writeHead(404).end();
      return;
    }
    const part = parts.get(name) ?? starters[name]();
    parts.set(name, part);
    part.then(
      (started) => response.end(JSON.stringify(started)),
      (error: unknown) => response.writeHead(500).end(error instanceof Error ? error.message : String(error)),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  server.unref();
  project.provide('turnoutPartsUrl', `http://127.0.0.1:${(server.address() as AddressInfo).port}`);

  return async () => {
    server.close();
    const failed = project.vitest.state.getCountOfFailedTests() > 0;
    for (const [name, starting] of parts) {
      const part = await starting.catch(() => undefined);
      if (name === 'postgres' && part?.source === 'environment') await dropTemplates(part as { url: string } & Part);
      await part?.stop({ keepLogs: failed });
    }
  };
}

function isPart(name: string): name is keyof typeof starters {
  return Object.hasOwn(starters, name);
}
