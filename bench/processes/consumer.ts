// A plain consumer. Argument: {brokers, topic}. Writes `joined`; at `report` on standard input `read <id> <ns>` for all it has
// seen, by the monotonic clock, then `done`.
import { createInterface } from 'node:readline';
import { Kafka, logLevel } from 'kafkajs';

const { brokers, topic } = JSON.parse(process.argv[2] ?? '{}') as { brokers: string[]; topic: string };
const kafka = new Kafka({ brokers, logLevel: logLevel.NOTHING });
const consumer = kafka.consumer({ groupId: `bench-${process.pid}` });
const lines: string[] = [];
consumer.on(consumer.events.GROUP_JOIN, () => void process.stdout.write('joined\n'));
await consumer.connect();
await consumer.subscribe({ topics: [topic], fromBeginning: true });
await consumer.run({
  autoCommit: false,
  partitionsConsumedConcurrently: 6,
  eachBatch: async ({ batch }) => {
    const now = process.hrtime.bigint();
    for (const { headers } of batch.messages) lines.push(`read ${headers?.['ce_id']?.toString()} ${now}`);
  },
});
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'count') process.stdout.write(`count ${lines.length}\n`);
  if (line === 'report') process.stdout.write(`${lines.join('\n')}\ndone\n`);
}
await consumer.disconnect();
