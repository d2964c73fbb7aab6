/**
 * The partition of an event: for keyed ones Kafka's default, `toPositive(murmur2(key)) % partitions`; for others
 * `seq % partitions`, so that a replay repeats it.
 */
export function partitionOf(key: string | null | undefined, seq: bigint, partitions: number): number {
  if (key === null || key === undefined) return Number(seq % BigInt(partitions));
  return (murmur2(Buffer.from(key)) & 0x7fffffff) % partitions;
}

/** MurmurHash2, 32 bit, seed 0x9747b28c, as in org.apache.kafka.common.utils.Utils.murmur2. */
export function murmur2(data: Uint8Array): number {
  const multiplier = 0x5bd1e995;
  const length = data.length;
  const words = length >> 2;
  let hash = 0x9747b28c ^ length;
  for (let word = 0; word < words; word++) {
    const at = word * 4;
    let k = data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16) | (data[at + 3]! << 24) | 0;
    k = Math.imul(k, multiplier);
    k ^= k >>> 24;
    k = Math.imul(k, multiplier);
    hash = Math.imul(hash, multiplier) ^ k;
  }
  const rest = words * 4;
  const left = length & 3;
  if (left === 3) hash ^= data[rest + 2]! << 16;
  if (left >= 2) hash ^= data[rest + 1]! << 8;
  if (left >= 1) {
    hash ^= data[rest]!;
    hash = Math.imul(hash, multiplier);
  }
  hash ^= hash >>> 13;
  hash = Math.imul(hash, multiplier);
  return hash ^ (hash >>> 15);
}
