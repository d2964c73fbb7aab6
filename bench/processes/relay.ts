// The relay in a process of its own. Argument: {url, brokers}. On standard input: `start`, `stop`, `quit`. On standard output:
// `leading`, `published <events> <milliseconds since leading> <milliseconds of CPU since leading>` after each tick, `stopped`.
import { createInterface } from 'node:readline';
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { kafkaJsPublisher } from '../../adapters/kafkajs/index.ts';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { createRelay } from '../../src/relay/index.ts';
import type { Relay } from '../../src/relay/index.ts';

const { url, brokers } = JSON.parse(process.argv[2] ?? '{}') as { url: string; brokers: string[] };
const pool = new Pool({ connectionString: url, max: 4 });
const kafka = new Kafka({ brokers, logLevel: logLevel.NOTHING });
const say = (line: string): void => void process.stdout.write(`${line}\n`);

function start(): Relay {
  let leadingAt = 0;
  let cpu = process.cpuUsage();
  let busy = performance.eventLoopUtilization();
  const relay = createRelay({
    database: pgDatabase(pool),
    publisher: kafkaJsPublisher(kafka),
    onEvent: (event) => {
      if (event.kind === 'leading') {
        leadingAt = performance.now();
        cpu = process.cpuUsage();
        busy = performance.eventLoopUtilization();
        say('leading');
      }
      if (event.kind === 'tick')
        say(
          `published ${relay.counts().published} ${performance.now() - leadingAt} ${cpuMsSince(cpu)} ${performance.eventLoopUtilization(busy).utilization.toFixed(3)}`,
        );
    },
  });
  void relay.start();
  return relay;
}

function cpuMsSince(start: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1_000;
}

let relay: Relay | undefined;
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'start') relay = start();
  if (line === 'stop') {
    await relay?.stop();
    say('stopped');
  }
  if (line === 'quit') break;
}
await pool.end();
process.exit(0);
