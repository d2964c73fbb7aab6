import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import { failpoint } from '../lifecycle/index.ts';
import type { Message } from '../event/index.ts';
import type { PartitionBatch } from './publisher.ts';

/** How much is sent at once. */
export interface ChainLimits {
  /** Sends in flight; no two of them share a partition. */
  readonly sends: number;
  /** Most messages of one partition in one send. */
  readonly batchMessages: number;
  /** Most bytes of one partition in one send; a message that is larger goes alone. */
  readonly batchBytes: number;
  /** Pages that may wait or be in flight before {@link Chain.push} waits. */
  readonly pages: number;
}

// kafkajs gathers a partition's messages in time that grows with the square of their number, so larger batches are slower (bench/README.md).
export const defaultChainLimits: ChainLimits = { sends: 2, batchMessages: 250, batchBytes: 512 * 1024, pages: 3 };

/**
 * The sends of one tick. Within a partition each is made only when the one before it is acknowledged. **A broken chain stays
 * broken**: after one failure nothing more is sent, for any partition, until the tick is replayed by a new chain; if a later page
 * landed after an earlier one failed, numbers would have holes and consumers would lose events.
 */
export interface Chain<Mark> {
  /**
   * Queues a page; resolves when there is room for another, and rejects with the error that broke the chain.
   * `mark` is what {@link acknowledged} gives once this page and all before it are acknowledged.
   */
  push(batches: readonly PartitionBatch[], mark: Mark): Promise<void>;
  /** The mark of the last page up to which everything is acknowledged. */
  acknowledged(): Mark | undefined;
  /** Resolves when all is acknowledged. Rejects, once no send is in flight any more, with the error that broke the chain. */
  flush(): Promise<void>;
  /** Breaks the chain from outside, for instance when the database was lost. */
  break(error: unknown): void;
}

interface Page<Mark> {
  outstanding: number;
  readonly mark: Mark;
}

interface Piece<Mark> {
  readonly page: Page<Mark>;
  readonly messages: readonly Message[];
  next: number;
}

interface Partition<Mark> {
  readonly topic: string;
  readonly partition: number;
  readonly pieces: Piece<Mark>[];
  busy: boolean;
}

export function createChain<Mark>(
  send: (batches: readonly PartitionBatch[]) => Promise<void>,
  limits: ChainLimits = defaultChainLimits,
): Chain<Mark> {
  const partitions = new Map<string, Partition<Mark>>();
  const pages: Page<Mark>[] = [];
  let acknowledged: Mark | undefined;
  let inFlight = 0;
  let broken: { error: unknown } | undefined;
  let failed: { error: unknown } | undefined;
  let wake: (() => void)[] = [];

  function changed(): void {
    const waiting = wake;
    wake = [];
    for (const each of waiting) each();
  }

  async function until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => wake.push(resolve));
  }

  function stopIfBroken(): void {
    if (broken !== undefined) throw asPublishError(broken.error);
  }

  function pump(): void {
    while (broken === undefined && inFlight < limits.sends) {
      const idle = [...partitions.values()].filter((each) => !each.busy && each.pieces.length > 0);
      if (idle.length === 0) return;
      // A share for each send that may be in flight, so that one is encoded while the broker writes another.
      const share = Math.max(1, Math.ceil(partitions.size / limits.sends));
      void sendOne(idle.slice(0, share));
    }
  }

  async function sendOne(taken: Partition<Mark>[]): Promise<void> {
    inFlight++;
    const counts: { page: Page<Mark>; count: number }[] = [];
    const batches = taken.map((each) => {
      each.busy = true;
      return { topic: each.topic, partition: each.partition, messages: take(each, limits, counts) };
    });
    try {
      await send(batches);
      for (const { page, count } of counts) page.outstanding -= count;
      while (pages[0]?.outstanding === 0) acknowledged = pages.shift()!.mark;
    } catch (error) {
      if (failpoint('relay.unchained-sends')) {
        failed ??= { error };
        for (const { page, count } of counts) page.outstanding -= count;
        while (pages[0]?.outstanding === 0) pages.shift();
      } else {
        broken ??= { error };
      }
    }
    inFlight--;
    for (const each of taken) each.busy = false;
    pump();
    changed();
  }

  return {
    async push(batches, mark) {
      stopIfBroken();
      const page: Page<Mark> = { mark, outstanding: 0 };
      pages.push(page);
      for (const { topic, partition, messages } of batches) {
        page.outstanding += messages.length;
        const name = `${topic}/${partition}`;
        let queue = partitions.get(name);
        if (queue === undefined) partitions.set(name, (queue = { topic, partition, pieces: [], busy: false }));
        queue.pieces.push({ page, messages, next: 0 });
      }
      pump();
      await until(() => broken !== undefined || pages.length < limits.pages);
      stopIfBroken();
    },
    acknowledged: () => acknowledged,
    async flush() {
      await until(() => inFlight === 0 && (broken !== undefined || pages.length === 0));
      const failure = broken ?? failed;
      if (failure !== undefined) throw asPublishError(failure.error);
    },
    break(error) {
      broken ??= { error };
      changed();
    },
  };
}

/** Takes the next messages of a partition, from as many pages as fit. */
function take<Mark>(
  from: Partition<Mark>,
  limits: ChainLimits,
  counts: { page: Page<Mark>; count: number }[],
): Message[] {
  const taken: Message[] = [];
  let bytes = 0;
  for (;;) {
    const piece = from.pieces[0];
    if (piece === undefined) return taken;
    let count = 0;
    while (piece.next < piece.messages.length) {
      const message = piece.messages[piece.next]!;
      const size = (message.value?.length ?? 0) + 400;
      if (taken.length > 0 && (taken.length >= limits.batchMessages || bytes + size > limits.batchBytes)) break;
      taken.push(message);
      bytes += size;
      piece.next++;
      count++;
    }
    counts.push({ page: piece.page, count });
    if (piece.next < piece.messages.length) return taken;
    from.pieces.shift();
  }
}

/** Whatever a publisher throws, the relay sees one of its own codes: the tick is replayed, whatever the reason was. */
function asPublishError(error: unknown): unknown {
  if (isTurnoutError(error)) return error;
  const what = error instanceof Error ? error.message : String(error);
  return new TurnoutError('TURNOUT_PUBLISH_FAILED', `The broker did not take a batch: ${what}.`, { cause: error });
}
