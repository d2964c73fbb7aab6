// A relay in a process of its own, for tests that kill it. Its one argument is a RelayProcessOptions as JSON; it writes
// `ready`, `event {…}` and `ended <code>` lines, and stops in order at SIGTERM.
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { kafkaJsPublisher } from '../../adapters/kafkajs/index.ts';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Publisher } from '../../src/relay/index.ts';
import { createRelay } from '../../src/relay/index.ts';
import { random } from './random.ts';

export interface RelayProcessOptions {
  readonly url: string;
  readonly brokers: readonly string[];
  readonly seed: number;
  readonly takeoverMs?: number;
  readonly pageSize?: number;
  /** Share of sends that fail: half of them before anything is written, half of them after all of it was. */
  readonly failingSends?: number;
  /** The process kills itself once this many sends are acknowledged. */
  readonly dieAfterSends?: number;
  /** The relay is not told what the topics hold, so that it can't notice by itself that something is wrong. */
  readonly blind?: boolean;
}

const options = JSON.parse(process.argv[2] ?? '{}') as RelayProcessOptions;
const next = random(options.seed);
let acknowledged = 0;

function flaky(publisher: Publisher): Publisher {
  const share = options.failingSends ?? 0;
  return {
    ...publisher,
    async send(batches) {
      const dice = next();
      if (dice < share / 2) throw told('before');
      await publisher.send(batches);
      if (++acknowledged === options.dieAfterSends) process.kill(process.pid, 'SIGKILL');
      if (dice < share) throw told('after');
    },
    lastRecords: (topics) => (options.blind === true ? Promise.resolve([]) : publisher.lastRecords(topics)),
  };
}

function told(when: string): TurnoutError {
  write('event', JSON.stringify({ kind: 'failed-send', when }));
  return new TurnoutError('TURNOUT_PUBLISH_FAILED', `The test failed this send, ${when} it was written.`);
}

function write(...words: string[]): void {
  process.stdout.write(`${words.join(' ')}\n`);
}

const pool = new Pool({ connectionString: options.url, max: 4 });
// Backends are ended on purpose here.
pool.on('error', () => undefined);
const kafka = new Kafka({ brokers: [...options.brokers], logLevel: logLevel.NOTHING });
const relay = createRelay({
  database: pgDatabase(pool),
  publisher: flaky(kafkaJsPublisher(kafka)),
  ...(options.takeoverMs === undefined ? {} : { takeoverMs: options.takeoverMs }),
  ...(options.pageSize === undefined ? {} : { pageSize: options.pageSize }),
  onEvent: (event) =>
    write(
      'event',
      JSON.stringify(event, (_key, value: unknown) => (typeof value === 'bigint' ? value.toString() : value)),
    ),
});

process.once('SIGTERM', () => void relay.stop());
try {
  await relay.start();
  write('ready');
  const error = await relay.failed();
  write('ended', error instanceof TurnoutError ? error.code : String(error));
} catch (error) {
  write('ended', error instanceof TurnoutError ? error.code : String(error));
}
await pool.end();
process.exit(0);
