// Ways to build a switchover wrongly. Each is made where the world hands something to the shipped decisions, or carries out what
// they decided; each has to be found.

export const breakages = {
  'no-shared-inbox': 'calls and events have an inbox and a gate each',
  'no-key-number': 'events of an ordered switchover carry no key number',
  'drops-old-epochs': 'the receiver drops what was stamped under an older epoch than it has seen',
  'no-sweeper': 'nobody makes the calls that a crash left',
  'route-not-stamped': 'the route is read when an event is sent and again when it is received',
  'early-in-memory': 'early events are kept in the memory of the process only',
  'no-lock-on-hold': 'reading the gate and holding an early event are not under one lock',
  'rejected-keeps-number': 'an event that was rejected does not consume its key number',
  'foreign-4xx-counts': "a proxy's 404 deletes the row of the call",
  'no-stamps-after-done': 'after `done` events are no longer stamped',
  'no-route-is-event': 'an event without a route is taken for one that is routed to events',
  'promotes-before-since': 'a switchover is promoted before the start of its consumer is recorded',
  'gates-expire': 'gates are forgotten like outcomes',
  'done-by-xmin': '`done` relies on pg_snapshot_xmin instead of waiting for open stampers',
  'offset-before-database': 'the offset is committed to Kafka before the database commits',
} as const;

export type Breakage = keyof typeof breakages;

export const isBreakage = (name: string): name is Breakage => Object.hasOwn(breakages, name);
