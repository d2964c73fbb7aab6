/** What is known of an error code: whether the same attempt may succeed later, and what the reader can do. */
export interface ErrorKind {
  readonly retryable: boolean;
  /** The second half of the message: what to do. */
  readonly remedy: string;
  /** The SQLSTATE under which Turnout's SQL functions raise it. */
  readonly sqlState?: string;
}

/**
 * Every error Turnout raises. A code is for ever: it is never renamed, and never used for something else.
 * `docs/errors.md` lists the same codes; a test holds the two together.
 */
export const errorKinds = {
  // Definitions and configuration
  TURNOUT_DEFINITION_INVALID: { retryable: false, remedy: 'Correct the definition at the path given.' },
  TURNOUT_CONFIG_INVALID: {
    retryable: false,
    remedy:
      'Do as the message says, in the folder of the service that the command is about, or name its file with --config.',
  },
  TURNOUT_SOURCE_UNREGISTERED: {
    retryable: false,
    sqlState: 'TU001',
    remedy: 'Run `turnout topics apply` with a configuration that names this source.',
  },
  TURNOUT_SWITCHOVER_UNKNOWN: {
    retryable: false,
    sqlState: 'TU002',
    remedy: 'Create it with `turnout switch <name> rpc` before code that passes it is deployed.',
  },
  TURNOUT_SWITCHOVER_TYPE_MISSING: {
    retryable: true,
    sqlState: 'TU018',
    remedy: 'Run `turnout switch <name> register` before code that calls for this event type is deployed.',
  },
  TURNOUT_EVENT_TYPE_UNREGISTERED: {
    retryable: false,
    sqlState: 'TU003',
    remedy:
      'Run `turnout topics apply` with a configuration that lists this event type and version, then deploy the publisher.',
  },
  TURNOUT_TOPIC_PARTITIONS_CHANGED: {
    retryable: false,
    sqlState: 'TU007',
    remedy: 'Keep the recorded count: another one moves keys to other partitions and breaks their order.',
  },
  TURNOUT_EVENT_TYPE_CHANGED: {
    retryable: false,
    sqlState: 'TU008',
    remedy: 'Keep topic and order of a released event type; publish a new version or name instead.',
  },
  TURNOUT_SWITCHOVER_INVALID: {
    retryable: false,
    sqlState: 'TU010',
    remedy: 'Correct the definition of the switchover.',
  },

  TURNOUT_ENDPOINT_DIFFERS: {
    retryable: true,
    remedy:
      'Run `turnout switch <name> register` in stage rpc, before code that declares another endpoint is deployed.',
  },

  // Publishing
  TURNOUT_EVENT_DATA_INVALID: {
    retryable: false,
    sqlState: 'TU009',
    remedy: 'Correct the data at the path given; nothing was written.',
  },
  TURNOUT_PAYLOAD_TOO_LARGE: {
    retryable: false,
    sqlState: 'TU004',
    remedy:
      'Send ids and a link (a notification) instead of the whole state, or raise maxBytes of the topic and of the broker.',
  },
  TURNOUT_KEY_MISSING: {
    retryable: false,
    sqlState: 'TU005',
    remedy: "Give the event a key, or define its type with order: 'none'.",
  },
  TURNOUT_TOO_MANY_KEYS: {
    retryable: false,
    sqlState: 'TU006',
    remedy: 'Publish in several transactions: each key takes a lock, and the lock table of Postgres is finite.',
  },
  TURNOUT_TRANSACTION_REQUIRED: {
    retryable: false,
    remedy: 'Pass the client or entity manager of an open transaction, or use turnout.transaction().',
  },
  TURNOUT_TRANSACTION_ABORTED: {
    retryable: false,
    remedy:
      'An earlier statement of the transaction failed and was swallowed; let its error through. The commit was a rollback.',
  },
  TURNOUT_COMMIT_UNKNOWN: {
    retryable: false,
    remedy:
      'Look whether the change is there before you repeat it: the connection was lost before the commit was answered.',
  },
  TURNOUT_JOIN_REFUSED: {
    retryable: false,
    remedy:
      'Make the code use one client for one piece of work, or give it a pool that does not join and declare its handler detached.',
  },

  // Switchover
  TURNOUT_STAGE_UNKNOWN: { retryable: false, sqlState: 'TU011', remedy: 'Use one of rpc, shadow, ramp, event, done.' },
  TURNOUT_REASON_MISSING: {
    retryable: false,
    sqlState: 'TU012',
    remedy: 'Say why, with --reason; the history keeps it.',
  },
  TURNOUT_STAGE_UNAVAILABLE: {
    retryable: false,
    sqlState: 'TU013',
    remedy: 'A bridged endpoint has no gate, so it drains, then flips: use stage rpc, event or done.',
  },
  TURNOUT_STAGE_ORDER: {
    retryable: false,
    sqlState: 'TU024',
    remedy:
      'Go one after the other: rpc, shadow, ramp, event, done; automatic changes only go back, and `--redrive` goes with rpc.',
  },
  TURNOUT_STAGE_CHANGED: {
    retryable: false,
    sqlState: 'TU042',
    remedy: 'Somebody has changed the stage meanwhile: look at `turnout switch history <name>`, then decide again.',
  },
  TURNOUT_PERCENT_INVALID: {
    retryable: false,
    sqlState: 'TU022',
    remedy: 'Give stage ramp its share of keys, for instance `--percent 5`, and other stages none.',
  },
  TURNOUT_SINCE_MISSING: {
    retryable: false,
    sqlState: 'TU014',
    remedy: 'Start the consumer (`turnout consume <name>`), run `turnout switch <name> rpc` again, then promote.',
  },
  TURNOUT_CHECKS_MISSING: {
    retryable: false,
    sqlState: 'TU015',
    remedy: 'Let `turnout switch` look at it, which keeps a check, or promote with --force and a --reason.',
  },
  TURNOUT_CHECKS_NOT_READY: {
    retryable: true,
    sqlState: 'TU020',
    remedy: 'Do what the findings say and look again, or promote with --force and a --reason.',
  },
  TURNOUT_CALLS_OWED: {
    retryable: true,
    sqlState: 'TU021',
    remedy:
      'Wait until they are answered (`turnout run` makes them; `turnout switch status` says what they fail of), then try again.',
  },
  TURNOUT_CALLS_OPEN: {
    retryable: true,
    sqlState: 'TU023',
    remedy: 'Try again; if it stays, end the long transactions that publish (pg_stat_activity shows them).',
  },
  TURNOUT_UNDECLARED_PUBLISHERS: {
    retryable: true,
    sqlState: 'TU016',
    remedy: 'Deploy the switchover to every publisher first, or promote with --force and a --reason.',
  },
  TURNOUT_TRANSACTIONS_OPEN: {
    retryable: true,
    remedy: 'End these transactions, or wait for them, then run the same command again: it goes on where it was.',
  },
  TURNOUT_CONSUMER_UNCOMMITTED: {
    retryable: true,
    remedy: 'Stop the consumer for a moment, run the same command again, then start it.',
  },
  TURNOUT_CONSUMER_OFFSETS_MISSING: {
    retryable: true,
    remedy:
      'Start the consumer (`turnout consume <name>`) and wait until it is ready, while nothing is routed to it; then promote again.',
  },
  TURNOUT_ROUTES_MALFORMED: {
    retryable: false,
    remedy:
      'The message was not written by Turnout, or was changed on its way; find out by whom before the consumer goes on.',
  },
  TURNOUT_EFFECT_KEY_REUSED: {
    retryable: false,
    remedy: 'An effect key belongs to one event and one body; find the caller that uses it for another.',
  },
  TURNOUT_EFFECT_RUNNING: { retryable: true, remedy: 'Ask again shortly; the same effect or key is being applied.' },
  TURNOUT_EFFECT_EARLY: { retryable: true, remedy: 'Send the missing events of the key first.' },
  TURNOUT_GATE_HALTED: {
    retryable: false,
    remedy:
      'The key has an event that is older than its last one and was never seen; look at turnout.alarm before it goes on.',
  },
  TURNOUT_EVENT_UNKNOWN: {
    retryable: false,
    remedy: 'Give the id of an event of this database; those older than retention have left the outbox.',
  },
  TURNOUT_STAGE_FINAL: {
    retryable: false,
    sqlState: 'TU017',
    remedy: 'A switchover that is done stays done; define a new one.',
  },
  TURNOUT_CALL_HEADERS_MALFORMED: {
    retryable: false,
    remedy: 'Pass the headers of the call on as they are (docs/switchover.md lists them); rpcFetch does.',
  },
  TURNOUT_CALL_UNKEYED: {
    retryable: false,
    remedy: 'Call through Turnout: this endpoint refuses calls without its headers.',
  },
  TURNOUT_ANSWER_TOO_LARGE: {
    retryable: false,
    remedy: 'Answers are kept in memory until the commit; raise maxAnswerBytes, or answer with less.',
  },
  TURNOUT_REQUEST_TOO_LARGE: {
    retryable: false,
    remedy:
      'Requests are read before their handler reads them, to tell one from another; raise maxRequestBytes, or send less.',
  },
  TURNOUT_GATE_NESTED: {
    retryable: false,
    remedy: 'Leave one switchedOver on the route: a gate can’t stand in the transaction of another, nor of itself.',
  },
  TURNOUT_UNAUTHENTICATED: {
    retryable: false,
    remedy: 'Send the credentials that the endpoint’s authenticate() expects.',
  },

  TURNOUT_PATH_AMBIGUOUS: {
    retryable: false,
    remedy: 'Write the path of a recorded call without encoded slashes, dots and control characters.',
  },

  // Envelope
  TURNOUT_ENVELOPE_MALFORMED: {
    retryable: false,
    remedy: 'The message is not a CloudEvent in Kafka binary mode; keep topics of Turnout for its events.',
  },

  // Databases and migrations
  TURNOUT_DATABASE_UNREACHABLE: {
    retryable: true,
    remedy: 'Check address, credentials and that the server accepts connections.',
  },
  TURNOUT_MIGRATION_MISSING: { retryable: false, remedy: 'Run `turnout migrate` against this database.' },
  TURNOUT_MIGRATION_CHANGED: {
    retryable: false,
    remedy: 'A released migration never changes: restore the file, and put the change into a new one.',
  },
  TURNOUT_MIGRATION_FAILED: {
    retryable: false,
    remedy: 'Nothing of this migration was kept; remove the cause and run `turnout migrate` again.',
  },
  TURNOUT_DATABASE_NEWER: { retryable: false, remedy: 'Deploy a version of Turnout that knows these migrations.' },
  TURNOUT_POOL_TOO_SMALL: { retryable: false, remedy: 'Raise `max` of the pool, or lower the concurrency.' },
  TURNOUT_POOL_TIMEOUT: {
    retryable: true,
    remedy:
      'All connections of the pool are taken; raise `max`, or make handlers join the transaction instead of opening another.',
  },

  // Broker, relay, consumer
  TURNOUT_BROKER_UNREACHABLE: { retryable: true, remedy: 'Check the broker addresses and that the cluster is up.' },
  TURNOUT_TOPIC_MISSING: { retryable: false, remedy: 'Run `turnout topics apply`.' },
  TURNOUT_PARTITIONS_MISMATCH: {
    retryable: false,
    remedy:
      'The broker has another partition count than turnout.topic records; bring them together before events are published.',
  },
  TURNOUT_SEQUENCE_CACHED: {
    retryable: false,
    remedy: 'Run `alter sequence turnout.outbox_seq_seq cache 1`: with a larger cache the order of keys is lost.',
  },
  TURNOUT_RELAY_FENCED: { retryable: true, remedy: 'Another relay has taken over; this one steps down and stands by.' },
  TURNOUT_PUBLISH_FAILED: {
    retryable: true,
    remedy: 'The relay replays the tick from its start once the broker answers.',
  },
  TURNOUT_DATABASE_REWOUND: {
    retryable: false,
    remedy:
      'Find out what consumers know that this database does not (a restore, a lossy promotion, a copy from another cluster; docs/relay.md), then run `turnout relay rebase --reason …`.',
  },
  TURNOUT_RELAY_LEADING: {
    retryable: true,
    sqlState: 'TU019',
    remedy: 'Stop every relay of the database (`turnout run`), then run the same command again.',
  },
  TURNOUT_POSITION_OUT_OF_RANGE: {
    retryable: false,
    remedy:
      'The log no longer holds (or never held) this position; decide where to go on, nothing is skipped by itself.',
  },
  TURNOUT_PARTITION_FENCED: {
    retryable: true,
    remedy: 'Another process owns the partition now; this one has rolled back.',
  },
  TURNOUT_UNKNOWN_REPEAT: {
    retryable: false,
    remedy:
      'An event at or below the last sequence was never seen here; find out why, decide with turnout.accept_repeat whether it is applied or skipped, and start the consumer again.',
  },
  TURNOUT_HANDLER_FAILED: {
    retryable: true,
    remedy: 'It is tried again, then parked with the later events of its key.',
  },
  TURNOUT_ENDPOINT_UNAVAILABLE: {
    retryable: true,
    remedy: 'It is called again until it answers; bring it back, or take the rate down if it is asked too often.',
  },
  TURNOUT_EVENT_UNHANDLED: {
    retryable: false,
    remedy: 'Add a handler for this type and version, deploy it, then retry the parked event.',
  },
  TURNOUT_EVENT_REFUSED: {
    retryable: false,
    remedy: 'The broker refused the real message for good: do by hand what it stands for, then skip the parked event.',
  },
  TURNOUT_HANDLER_MISSING: {
    retryable: false,
    remedy: 'Name the consumer in the configuration and export its definition.',
  },
  TURNOUT_SHADOW_GROUP_UNKNOWN: {
    retryable: false,
    sqlState: 'TU025',
    remedy: 'Take a fingerprint that `turnout shadow report <name>` shows.',
  },
  TURNOUT_SHADOW_TABLE_INVALID: {
    retryable: false,
    sqlState: 'TU026',
    remedy: 'Watch the tables that the handler writes to: ordinary or partitioned ones of the service.',
  },
  TURNOUT_SHADOW_MISMATCHED: {
    retryable: false,
    remedy: 'Look at the groups of the report: correct the handler, ignore what may differ, or waive it until a date.',
  },
  TURNOUT_ISOLATION_UNSUITABLE: {
    retryable: false,
    sqlState: 'TU030',
    remedy:
      'Begin the transaction of an effect at READ COMMITTED, the default: what is read has to be newer than its lock.',
  },
  TURNOUT_EFFECT_NOT_BEGUN: {
    retryable: false,
    sqlState: 'TU031',
    remedy: 'Begin and finish an effect in one transaction, with its handler in between: the lock ends with it.',
  },
  TURNOUT_EVENT_ID_REUSED: {
    retryable: false,
    sqlState: 'TU035',
    remedy: 'Give each event an id of its own: one id is one event of one source, type and key.',
  },
  TURNOUT_NUMBER_NOT_NEXT: {
    retryable: false,
    sqlState: 'TU036',
    remedy: 'Pass the number after the one at which the gate stands, and only if its event will never come.',
  },
  TURNOUT_NUMBER_HELD: {
    retryable: false,
    sqlState: 'TU037',
    remedy: 'The event is there: let it go on with turnout.retry_parked, or give it up with turnout.skip_parked.',
  },
  TURNOUT_FAILPOINT_UNKNOWN: { retryable: false, remedy: 'Use one of the names in src/lifecycle/failpoints.ts.' },
} as const satisfies Record<string, ErrorKind>;

/** Stable identifier of an error; branch on it, never on a message. */
export type ErrorCode = keyof typeof errorKinds;
