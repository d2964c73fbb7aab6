import { afterEach, describe, expect, test } from 'vitest';
import type {
  Batch,
  Membership,
  Source,
  SourceMessage,
  Subscription,
  TopicPartition,
} from '../../src/consumer/index.ts';
import type { Message } from '../../src/event/index.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';

/** A broker as this suite needs it. */
export interface SourceUnderTest {
  /** A source of its own, as another process would have. */
  source(): Source;
  createTopic(name: string, partitions: number): Promise<void>;
  write(place: TopicPartition, messages: readonly Message[]): Promise<void>;
  /** Forgets messages below an offset, as retention does. */
  deleteBelow(place: TopicPartition, offset: bigint): Promise<void>;
}

/** What every implementation of the `Source` port has to do. */
export function sourceContract(name: string, broker: () => SourceUnderTest): void {
  describe(`Source: ${name}`, () => {
    const open: Membership[] = [];
    afterEach(async () => {
      await Promise.all(open.splice(0).map((membership) => membership.close()));
    });

    async function topicOf(partitions: number): Promise<string> {
      const topic = uniqueName('source');
      await broker().createTopic(topic, partitions);
      return topic;
    }

    /** Joins with positions that are kept as a database would keep them: shared by all members, moved before the batch is returned. */
    async function join(topics: readonly string[], options: Joining = {}): Promise<Member> {
      const positions = options.positions ?? new Map<string, bigint>();
      const seen: Seen[] = [];
      const assignments: (readonly TopicPartition[])[] = [];
      const subscription: Subscription = {
        group: options.group ?? uniqueName('group'),
        topics,
        async onAssigned(partitions, signal) {
          assignments.push(partitions);
          await options.onAssigned?.(partitions, signal);
          return partitions.map((place) => ({ ...place, offset: positions.get(nameOf(place)) ?? 0n }));
        },
        async onBatch(batch) {
          const answer = await options.onBatch?.(batch);
          if (answer !== undefined) return answer;
          for (const message of batch.messages)
            seen.push({ topic: batch.topic, partition: batch.partition, ...message });
          const next = batch.messages.at(-1)!.offset + 1n;
          positions.set(nameOf(batch), next);
          return { next };
        },
      };
      const membership = await (options.source ?? broker().source()).join(subscription);
      open.push(membership);
      return { membership, seen, assignments, positions, group: subscription.group };
    }

    test('gives the bounds of each partition', async () => {
      const topic = await topicOf(2);
      const source = broker().source();
      expect(await source.bounds(topic)).toEqual([
        { partition: 0, low: 0n, high: 0n },
        { partition: 1, low: 0n, high: 0n },
      ]);
      await broker().write({ topic, partition: 1 }, texts('a', 'b', 'c'));
      await broker().deleteBelow({ topic, partition: 1 }, 2n);
      expect(await source.bounds(topic)).toEqual([
        { partition: 0, low: 0n, high: 0n },
        { partition: 1, low: 2n, high: 3n },
      ]);
    });

    test('refuses a topic that does not exist', async () => {
      const topic = uniqueName('missing');
      const source = broker().source();
      await expect(source.bounds(topic)).rejects.toMatchObject({ code: 'TURNOUT_TOPIC_MISSING' });
      await expect(join([topic], { source })).rejects.toMatchObject({ code: 'TURNOUT_TOPIC_MISSING' });
      await expect(source.commitWhileEmpty(uniqueName('group'), topic, new Map([[0, 0n]]))).rejects.toMatchObject({
        code: 'TURNOUT_TOPIC_MISSING',
      });
    });

    test('hands out messages as they were written, in offset order', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, [
        { key: 'k', value: Buffer.from([0xff, 0x00]), headers: { ce_id: '1', 'turnout-routes': 'a=rpc;epoch=1' } },
        { key: null, value: null, headers: {} },
      ]);
      await broker().write({ topic, partition: 0 }, texts('third'));
      const { seen } = await join([topic]);
      await waitFor(() => seen.length === 3, { what: 'three messages' });
      expect(seen).toEqual([
        {
          topic,
          partition: 0,
          offset: 0n,
          key: 'k',
          value: Buffer.from([0xff, 0x00]),
          headers: { ce_id: '1', 'turnout-routes': 'a=rpc;epoch=1' },
        },
        { topic, partition: 0, offset: 1n, key: null, value: null, headers: {} },
        { topic, partition: 0, offset: 2n, key: 'third', value: Buffer.from('third'), headers: {} },
      ]);
    });

    test('hands out what is written later', async () => {
      const topic = await topicOf(2);
      const { seen } = await join([topic]);
      await broker().write({ topic, partition: 1 }, texts('a'));
      await waitFor(() => seen.length === 1, { what: 'the first message' });
      await broker().write({ topic, partition: 0 }, texts('b'));
      await waitFor(() => seen.length === 2, { what: 'the second message' });
      expect(valuesOf(seen)).toEqual(['a', 'b']);
    });

    test('starts at the position it is given, wherever the group has committed', async () => {
      const topic = await topicOf(2);
      await broker().write({ topic, partition: 0 }, texts('a0', 'a1', 'a2', 'a3'));
      await broker().write({ topic, partition: 1 }, texts('b0', 'b1', 'b2', 'b3'));
      const group = uniqueName('group');
      const source = broker().source();
      // Ahead of the position in one partition, behind it in the other.
      const offsets = new Map([
        [0, 4n],
        [1, 0n],
      ]);
      expect(await source.commitWhileEmpty(group, topic, offsets)).toBe(true);
      expect(await source.committed(group, topic)).toEqual(offsets);
      const { seen } = await join([topic], {
        group,
        source,
        positions: new Map([
          [`${topic}/0`, 1n],
          [`${topic}/1`, 3n],
        ]),
      });
      await waitFor(() => seen.length >= 4, { what: 'four messages' });
      expect(valuesOf(seen).sort()).toEqual(['a1', 'a2', 'a3', 'b3']);
    });

    test('asks for positions before any batch, and waits for them', async () => {
      const topic = await topicOf(3);
      for (const partition of [0, 1, 2]) await broker().write({ topic, partition }, texts('x'));
      let release: () => void = () => undefined;
      const wait = new Promise<void>((resolve) => {
        release = resolve;
      });
      let batches = 0;
      const { assignments, seen } = await join([topic], {
        onAssigned: () => wait,
        onBatch: async () => void batches++,
      });
      await waitFor(() => assignments.length === 1, { what: 'the assignment' });
      await sleep(700);
      expect(batches).toBe(0);
      release();
      await waitFor(() => seen.length === 3, { what: 'a message of each partition' });
      expect(new Set(assignments[0]!.map((place) => place.partition))).toEqual(new Set([0, 1, 2]));
    });

    test('tells the group the positions it starts from', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c'));
      const source = broker().source();
      const member = await join([topic], { source, positions: new Map([[`${topic}/0`, 3n]]) });
      await waitFor(async () => (await source.committed(member.group, topic)).get(0) === 3n, {
        what: 'the committed offset',
      });
    });

    test('commits to the group what has been done, and never more', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c'));
      const source = broker().source();
      let release: () => void = () => undefined;
      const wait = new Promise<void>((resolve) => {
        release = resolve;
      });
      let asked = false;
      const member = await join([topic], {
        source,
        async onBatch() {
          asked = true;
          await wait;
        },
      });
      await waitFor(() => asked, { what: 'the batch' });
      expect((await source.committed(member.group, topic)).get(0) ?? 0n).toBe(0n);
      release();
      await waitFor(async () => (await source.committed(member.group, topic)).get(0) === 3n, {
        what: 'the committed offset',
      });
    });

    test('has committed all that was done when it is closed', async () => {
      const topic = await topicOf(1);
      const source = broker().source();
      const member = await join([topic], { source });
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c', 'd'));
      await waitFor(() => member.seen.length > 0, { what: 'a message' });
      await member.membership.close();
      expect((await source.committed(member.group, topic)).get(0)).toBe(member.positions.get(`${topic}/0`));
    });

    test('gives the rest again when only some is done', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c', 'd'));
      const firsts: string[] = [];
      await join([topic], {
        async onBatch(batch) {
          firsts.push(textOf(batch.messages[0]!));
          return { next: batch.messages[0]!.offset + 1n };
        },
      });
      await waitFor(() => firsts.length === 4, { what: 'four batches' });
      expect(firsts).toEqual(['a', 'b', 'c', 'd']);
    });

    test('gives a batch again no sooner than asked', async () => {
      const topic = await topicOf(2);
      await broker().write({ topic, partition: 0 }, texts('a'));
      const times: number[] = [];
      const { seen } = await join([topic], {
        async onBatch(batch) {
          if (batch.partition === 1) return undefined;
          times.push(performance.now());
          return times.length < 3 ? { next: 0n, retryAfterMs: 400 } : undefined;
        },
      });
      await waitFor(() => times.length === 1, { what: 'the first attempt' });
      // Another partition isn't held up by it.
      await broker().write({ topic, partition: 1 }, texts('b'));
      await waitFor(() => seen.some((message) => textOf(message) === 'b'), { what: 'the other partition' });
      await waitFor(() => seen.some((message) => textOf(message) === 'a'), { what: 'the third attempt' });
      expect(times.length).toBe(3);
      for (const index of [1, 2]) expect(times[index]! - times[index - 1]!).toBeGreaterThanOrEqual(395);
    });

    test('goes back when it is told a lower offset', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c'));
      let back = false;
      const offsets: bigint[] = [];
      await join([topic], {
        positions: new Map([[`${topic}/0`, 2n]]),
        async onBatch(batch) {
          offsets.push(...batch.messages.map((message) => message.offset));
          if (back) return undefined;
          back = true;
          return { next: 0n };
        },
      });
      await waitFor(() => offsets.length >= 4, { what: 'all messages' });
      expect(offsets).toEqual([2n, 0n, 1n, 2n]);
    });

    test('works on several partitions at once, and on one in turn', async () => {
      const topic = await topicOf(2);
      for (const partition of [0, 1]) await broker().write({ topic, partition }, texts('a', 'b', 'c'));
      const inHand = new Map<number, number>();
      let most = 0;
      let overlapping = false;
      const { seen } = await join([topic], {
        async onBatch(batch) {
          const now = (inHand.get(batch.partition) ?? 0) + 1;
          inHand.set(batch.partition, now);
          if (now > 1) overlapping = true;
          most = Math.max(most, [...inHand.values()].filter((count) => count > 0).length);
          if (most < 2) await waitFor(() => most === 2, { what: 'the other partition', deadlineMs: 5_000 });
          await batch.heartbeat();
          inHand.set(batch.partition, now - 1);
          return undefined;
        },
      });
      await waitFor(() => seen.length === 6, { what: 'all messages' });
      expect({ most, overlapping }).toEqual({ most: 2, overlapping: false });
    });

    test.each([
      ['below what the partition holds', 1n],
      ['beyond what the partition holds', 6n],
    ])('fails when a position is %s', async (_what, position) => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c', 'd', 'e'));
      await broker().deleteBelow({ topic, partition: 0 }, 3n);
      const { membership, seen } = await join([topic], { positions: new Map([[`${topic}/0`, position]]) });
      await expect(membership.closed).rejects.toMatchObject({
        code: 'TURNOUT_POSITION_OUT_OF_RANGE',
        details: { topic, partition: 0, position, low: 3n, high: 5n },
      });
      expect(seen).toEqual([]);
    });

    test('accepts the end of a partition as a position', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b'));
      const { seen } = await join([topic], { positions: new Map([[`${topic}/0`, 2n]]) });
      await broker().write({ topic, partition: 0 }, texts('c'));
      await waitFor(() => seen.length === 1, { what: 'the message' });
      expect(valuesOf(seen)).toEqual(['c']);
    });

    test('fails when its position is deleted while it reads, and passes over nothing', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a', 'b', 'c', 'd', 'e', 'f'));
      const { membership, seen } = await join([topic], {
        async onBatch() {
          await broker().deleteBelow({ topic, partition: 0 }, 4n);
          return { next: 0n, retryAfterMs: 50 };
        },
      });
      await expect(membership.closed).rejects.toMatchObject({
        code: 'TURNOUT_POSITION_OUT_OF_RANGE',
        details: { position: 0n, low: 4n },
      });
      expect(seen).toEqual([]);
    });

    test('shares the partitions among the members of a group, and deals them out anew when one comes or goes', async () => {
      const topic = await topicOf(4);
      const [group, positions] = [uniqueName('group'), new Map<string, bigint>()];
      const first = await join([topic], { group, positions });
      await waitFor(() => first.assignments.at(-1)?.length === 4, { what: 'the first member to have all' });
      const second = await join([topic], { group, positions });
      await waitFor(() => first.assignments.at(-1)?.length === 2 && second.assignments.at(-1)?.length === 2, {
        what: 'an equal share',
        deadlineMs: 20_000,
      });
      const all = [...first.assignments.at(-1)!, ...second.assignments.at(-1)!].map((place) => place.partition);
      expect(all.toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3]);
      for (const partition of [0, 1, 2, 3]) await broker().write({ topic, partition }, texts(`early ${partition}`));
      await waitFor(() => first.seen.length + second.seen.length === 4, { what: 'the messages' });
      await first.membership.close();
      await waitFor(() => second.assignments.at(-1)?.length === 4, {
        what: 'the second member to have all',
        deadlineMs: 20_000,
      });
      for (const partition of [0, 1, 2, 3]) await broker().write({ topic, partition }, texts(`late ${partition}`));
      await waitFor(() => first.seen.length + second.seen.length === 8, { what: 'the later messages' });
      expect(new Set(valuesOf([...first.seen, ...second.seen])).size).toBe(8);
    });

    test('lets batches in hand end before their partition goes to another member, and asks them to', async () => {
      const topic = await topicOf(2);
      for (const partition of [0, 1]) await broker().write({ topic, partition }, texts('a'));
      const [group, positions] = [uniqueName('group'), new Map<string, bigint>()];
      let asked = 0;
      let ended = 0;
      await join([topic], {
        group,
        positions,
        async onBatch(batch) {
          asked++;
          if (asked > 2) return undefined;
          await waitFor(() => batch.signal.aborted, { what: 'the signal', deadlineMs: 20_000 });
          ended++;
          return undefined;
        },
      });
      await waitFor(() => asked === 2, { what: 'two batches in hand' });
      let endedBefore = -1;
      const second = await join([topic], {
        group,
        positions,
        async onAssigned() {
          endedBefore = ended;
        },
      });
      await waitFor(() => second.assignments.length > 0, { what: 'the second member', deadlineMs: 20_000 });
      expect(endedBefore).toBe(2);
    });

    test('gives every group all messages', async () => {
      const topic = await topicOf(2);
      for (const partition of [0, 1]) await broker().write({ topic, partition }, texts('a', 'b'));
      const members = await Promise.all([join([topic]), join([topic])]);
      await waitFor(() => members.every((member) => member.seen.length === 4), { what: 'all messages in both groups' });
    });

    test('reads several topics', async () => {
      const topics = [await topicOf(1), await topicOf(2)];
      await broker().write({ topic: topics[0]!, partition: 0 }, texts('a'));
      await broker().write({ topic: topics[1]!, partition: 1 }, texts('b'));
      const { seen } = await join(topics);
      await waitFor(() => seen.length === 2, { what: 'a message of each topic' });
      expect(valuesOf(seen).sort()).toEqual(['a', 'b']);
    });

    test('fails with the error of onAssigned', async () => {
      const topic = await topicOf(1);
      const { membership } = await join([topic], {
        async onAssigned() {
          throw new Error('no positions');
        },
      });
      await expect(membership.closed).rejects.toThrow('no positions');
    });

    test('fails with the error of onBatch, and commits nothing of it', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a'));
      const source = broker().source();
      const { membership, group } = await join([topic], {
        source,
        async onBatch() {
          throw new Error('halted');
        },
      });
      await expect(membership.closed).rejects.toThrow('halted');
      expect((await source.committed(group, topic)).get(0) ?? 0n).toBe(0n);
    });

    test('closes when the batch in hand has returned, and only then; closing again is the same', async () => {
      const topic = await topicOf(1);
      await broker().write({ topic, partition: 0 }, texts('a'));
      let batch: Batch | undefined;
      let release: () => void = () => undefined;
      const wait = new Promise<void>((resolve) => {
        release = resolve;
      });
      const { membership } = await join([topic], {
        async onBatch(given) {
          batch = given;
          await wait;
        },
      });
      await waitFor(() => batch !== undefined, { what: 'the batch' });
      let closed = false;
      const closing = Promise.all([membership.close(), membership.close()]).then(() => {
        closed = true;
      });
      await waitFor(() => batch!.signal.aborted, { what: 'the signal' });
      await sleep(100);
      expect(closed).toBe(false);
      release();
      await closing;
      await expect(membership.closed).resolves.toBeUndefined();
    });

    test('hands out nothing after it was closed', async () => {
      const topic = await topicOf(1);
      const { membership, seen, group } = await join([topic]);
      await membership.close();
      await broker().write({ topic, partition: 0 }, texts('a'));
      const next = await join([topic], { group });
      await waitFor(() => next.seen.length === 1, { what: 'the message, at the next member' });
      expect(seen).toEqual([]);
    });

    test('tells whether a group has a member', async () => {
      const topic = await topicOf(1);
      const source = broker().source();
      const group = uniqueName('group');
      expect(await source.running(group)).toBe(false);
      await source.commitWhileEmpty(group, topic, new Map([[0, 0n]]));
      expect(await source.running(group)).toBe(false);
      const { membership } = await join([topic], { group });
      expect(await source.running(group)).toBe(true);
      expect(await source.running(uniqueName('group'))).toBe(false);
      await membership.close();
      await waitFor(async () => !(await source.running(group)), { what: 'the group to be empty' });
    });

    test('commits for a group only while nobody is in it', async () => {
      const topic = await topicOf(2);
      await broker().write({ topic, partition: 0 }, texts('a', 'b'));
      const source = broker().source();
      const group = uniqueName('group');
      expect(await source.committed(group, topic)).toEqual(new Map());
      expect(await source.commitWhileEmpty(group, topic, new Map([[0, 1n]]))).toBe(true);
      expect(await source.committed(group, topic)).toEqual(new Map([[0, 1n]]));
      const { membership } = await join([topic], { group, source });
      expect(await source.commitWhileEmpty(group, topic, new Map([[0, 2n]]))).toBe(false);
      await membership.close();
      expect(await source.commitWhileEmpty(group, topic, new Map([[1, 0n]]))).toBe(true);
      expect((await source.committed(group, topic)).get(1)).toBe(0n);
    });
  });
}

interface Seen extends SourceMessage, TopicPartition {}

interface Joining {
  group?: string;
  source?: Source;
  positions?: Map<string, bigint>;
  onAssigned?: (partitions: readonly TopicPartition[], signal: AbortSignal) => Promise<void>;
  /** Undefined: the batch is done, and remembered as seen. */
  onBatch?: (batch: Batch) => Promise<{ next: bigint; retryAfterMs?: number } | undefined | void>;
}

interface Member {
  membership: Membership;
  seen: Seen[];
  assignments: (readonly TopicPartition[])[];
  positions: Map<string, bigint>;
  group: string;
}

function nameOf({ topic, partition }: TopicPartition): string {
  return `${topic}/${partition}`;
}

function texts(...values: string[]): Message[] {
  return values.map((value) => ({ key: value, value: Buffer.from(value), headers: {} }));
}

function textOf(message: SourceMessage): string {
  return message.value?.toString() ?? '';
}

function valuesOf(messages: readonly SourceMessage[]): string[] {
  return messages.map(textOf);
}
