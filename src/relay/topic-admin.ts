/** What the broker says of a topic. */
export interface TopicDescription {
  readonly name: string;
  readonly partitions: number;
}

/** Creates and describes topics. Every call connects and disconnects by itself; throws TURNOUT_BROKER_UNREACHABLE. */
export interface TopicAdmin {
  /** The topics that exist among those named. */
  describe(topics: readonly string[]): Promise<TopicDescription[]>;
  /** Creates topics that don't exist; one that does is left as it is. Replication and retention are the broker's defaults. */
  create(topics: readonly TopicDescription[]): Promise<void>;
  /** Name and version of the broker, as far as it tells: `{ name: 'Apache Kafka', version: '4.4.0' }`. */
  identify(): Promise<{ name: string; version: string | undefined }>;
}
