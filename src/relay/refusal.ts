import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import type { Message } from '../event/index.ts';
import { placeholderOf } from './messages.ts';
import type { PartitionBatch, Publisher } from './publisher.ts';

/** A message that was replaced. */
export interface Refusal {
  readonly topic: string;
  readonly partition: number;
  readonly message: Message;
  readonly reason: string;
}

/**
 * Sends, and where the broker refuses a message for good, sends a placeholder with the same number in its place; the order of
 * each partition stays. What other partitions of the same send had already written is then written again.
 */
export async function sendOrReplace(
  publisher: Pick<Publisher, 'send'>,
  batches: readonly PartitionBatch[],
  refused: (refusal: Refusal) => void,
): Promise<void> {
  try {
    await publisher.send(batches);
  } catch (error) {
    if (!isTurnoutError(error, 'TURNOUT_PAYLOAD_TOO_LARGE')) throw error;
    if (batches.length > 1) for (const batch of batches) await sendOrReplace(publisher, [batch], refused);
    else await sendInPieces(publisher, batches[0]!, refused);
  }
}

/** A batch that is too large may hold no message that is: it is halved until only single messages are refused. */
async function sendInPieces(
  publisher: Pick<Publisher, 'send'>,
  batch: PartitionBatch,
  refused: (refusal: Refusal) => void,
): Promise<void> {
  const { topic, partition, messages } = batch;
  if (messages.length > 1) {
    const middle = messages.length >> 1;
    await sendOrReplace(publisher, [{ ...batch, messages: messages.slice(0, middle) }], refused);
    await sendOrReplace(publisher, [{ ...batch, messages: messages.slice(middle) }], refused);
    return;
  }
  const message = messages[0]!;
  const reason = `too large for the broker: ${bytesOf(message)} bytes`;
  try {
    await publisher.send([{ ...batch, messages: [placeholderOf(message, reason)] }]);
  } catch (error) {
    if (!isTurnoutError(error, 'TURNOUT_PAYLOAD_TOO_LARGE')) throw error;
    throw new TurnoutError('TURNOUT_PUBLISH_FAILED', `Topic ${topic} takes not even a placeholder.`, {
      cause: error,
      details: { topic, partition },
    });
  }
  refused({ topic, partition, message, reason });
}

function bytesOf({ key, value, headers }: Message): number {
  const texts = [key ?? '', ...Object.entries(headers).flat()];
  return texts.reduce((bytes, text) => bytes + Buffer.byteLength(text), value?.length ?? 0);
}
