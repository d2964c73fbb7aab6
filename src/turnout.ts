import type { Database, Queryable } from './database/index.ts';
import { TurnoutError } from './errors/index.ts';
import type { AnyEventDefinition, EventData, EventDefinition, TurnoutEvent } from './event/index.ts';
import { isName } from './event/index.ts';
import { silentLogger, sleep } from './lifecycle/index.ts';
import type { Logger } from './lifecycle/index.ts';
import { lockKeys, publishEvents, runTransaction } from './outbox/index.ts';
import type { PublishedEvent, PublishedStamp } from './outbox/index.ts';
import {
  awaitReplies,
  callQueue,
  defaultCallRetry,
  endpointsOnce,
  readReplies,
  replyWaiter,
  saysNothing,
  statusOf,
} from './switchover/index.ts';
import type {
  AnsweredOutcome,
  CallQueue,
  CallRetryPolicy,
  Delivered,
  KnownReply,
  MaybeReply,
  ReplyStatus,
  ReplyWaiter,
  RpcAnswer,
  SwitchoverDefinition,
} from './switchover/index.ts';

/** What came of an event at one consumer. `route` says which way the answer came. */
export type Reply<Replied extends MaybeReply = undefined> = RpcReply | EventReply<Replied>;

/** What came of a call. */
export type RpcReply =
  /** The consumer has it; `outcome` is its own word, `reply` what the old endpoint answered. */
  | { readonly route: 'rpc'; readonly status: 'done'; readonly outcome: AnsweredOutcome; readonly reply: RpcAnswer }
  /** The old endpoint refused it for good, or it was given up at the consumer: then `outcome` is `dead` or `skipped`. */
  | { readonly route: 'rpc'; readonly status: 'rejected'; readonly outcome: AnsweredOutcome; readonly reply: RpcAnswer }
  /** No answer yet; the call is kept and will be made again. */
  | {
      readonly route: 'rpc';
      readonly status: 'pending';
      readonly why: string;
      readonly effectKey: string;
      readonly statusUrl?: string;
    };

/** What came of an event that goes by Kafka: nobody answers, unless the switchover names the event that does. */
export type EventReply<Replied extends MaybeReply> = Replied extends AnyEventDefinition
  ?
      | { readonly route: 'event'; readonly status: 'done'; readonly reply: EventData<Replied> }
      /** No reply event within the time given. It may still come: see {@link Turnout.replyStatus}. */
      | {
          readonly route: 'event';
          readonly status: 'pending';
          readonly effectKey: string;
          readonly statusUrl?: string;
        }
  : { readonly route: 'event' };

/** An event that was published in a transaction, and the calls it owes. */
export interface Published {
  readonly id: string;
  /** Place in the outbox. */
  readonly seq: bigint;
  readonly key: string | null;
  readonly time: Date;
  readonly stamps: readonly PublishedStamp[];
  /**
   * What came of it at a switchover's consumer; to be awaited after the commit. The call is made, or the event sent, whether
   * or not anyone asks, and asking again does nothing again. `timeoutMs` bounds the wait only (default: the switchover's, and a
   * second); then `pending`. With a `reply` event in the switchover, one that comes in that time resolves it on either route.
   * Throws TURNOUT_SWITCHOVER_UNKNOWN if the event carries no route of the switchover, TURNOUT_TRANSACTION_ABORTED if
   * the transaction was rolled back.
   */
  reply<Replied extends MaybeReply>(
    switchover: SwitchoverDefinition<Replied>,
    options?: { readonly timeoutMs?: number },
  ): Promise<Reply<Replied>>;
}

export interface EventOptions {
  /**
   * A UUID of the caller's choice; by default a random one. An event with an id is published once, however often it is published: again, it
   * writes nothing and gives what was written the first time. For 30 days, unless the outbox's keeper was told otherwise.
   */
  readonly id?: string;
  /** Carried with the event, beside Turnout's own. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Proxies ask for it: what endpoints say to its calls is kept where a caller's retry finds it. */
  readonly keepsAnswers?: boolean;
}

/** One event of several that are published together; made by {@link occurrence}. */
export interface Occurrence extends EventOptions {
  readonly event: AnyEventDefinition;
  readonly data: unknown;
}

/**
 * Publishes events with business transactions, and makes the calls that switchovers still owe. Made by {@link createTurnout}.
 * `Tx` is what {@link Turnout.transaction} hands out, `Open` all that stands for an open transaction.
 */
export interface Turnout<Tx, Open = Tx> {
  /**
   * Runs `work` in a transaction; calls start right after its commit. Deadlocks and serialization failures are tried
   * again, so `work` may run more than once. Throws what `work` throws, TURNOUT_TRANSACTION_ABORTED.
   */
  transaction<Result>(work: (tx: Tx) => Promise<Result>): Promise<Result>;
  /**
   * Publishes an event in the caller's transaction. Resolves once the server has answered; the event goes out if and
   * when the transaction commits. With a transaction that Turnout can't see the end of, {@link deliver} starts the calls.
   * Throws TURNOUT_EVENT_DATA_INVALID, TURNOUT_KEY_MISSING, TURNOUT_PAYLOAD_TOO_LARGE, TURNOUT_EVENT_TYPE_UNREGISTERED,
   * TURNOUT_SOURCE_UNREGISTERED, TURNOUT_SWITCHOVER_UNKNOWN, TURNOUT_SWITCHOVER_TYPE_MISSING, TURNOUT_EVENT_ID_REUSED,
   * TURNOUT_TRANSACTION_REQUIRED, TURNOUT_TRANSACTION_ABORTED.
   *
   * @example
   * const published = await turnout.transaction(async (tx) => {
   *   await saveOrder(tx, order);
   *   return turnout.publish(tx, OrderPlaced, order);
   * });
   */
  publish<Name extends string, Input, Data>(
    tx: Open,
    event: EventDefinition<Name, Input, Data>,
    data: NoInfer<Input>,
    options?: EventOptions,
  ): Promise<Published>;
  /**
   * Publishes several events in one round trip, in the order given; throws as {@link publish} does, and
   * TURNOUT_TOO_MANY_KEYS.
   *
   * @example
   * await turnout.publishAll(tx, [occurrence(OrderPlaced, order), occurrence(StockTaken, stock)]);
   */
  publishAll(tx: Open, occurrences: readonly Occurrence[]): Promise<Published[]>;
  /** Takes the locks of keys early, in one order; see docs/outbox.md on deadlocks. Throws TURNOUT_TOO_MANY_KEYS. */
  lockKeys(tx: Open, event: AnyEventDefinition, keys: readonly string[]): Promise<void>;
  /**
   * Makes the calls of events whose transaction the caller has committed itself. Resolves when each has been answered or
   * left to the sweeper; never rejects for a call. Does nothing for events that are not there (rolled back) or already delivered.
   */
  deliver(published: Published | readonly Published[]): Promise<void>;
  /**
   * What is known of the reply to an effect (`<consumer>.<event id>`), whichever process published its event: for switchovers
   * with a `reply`. Waits for nothing. What is older than replies are kept is `unknown`.
   *
   * @example
   * const known = await turnout.replyStatus(`email.${orderId}`);
   * if (known.status === 'pending') return acceptedAnswer({ ...known, effectKey });
   */
  replyStatus(effectKey: string): Promise<ReplyStatus>;
  /** Resolves when the calls in flight are over; the sweeper makes those that were not begun. Whoever waits for a reply gets `pending`. */
  close(): Promise<void>;
}

/** Types one event for {@link Turnout.publishAll}. */
export function occurrence<Name extends string, Input, Data>(
  event: EventDefinition<Name, Input, Data>,
  data: NoInfer<Input>,
  options: EventOptions = {},
): Occurrence {
  return { event, data, ...options };
}

/** What a database takes for an open transaction; may be more than it hands out (TypeORM's `QueryRunner`). */
interface OpenIn<Open> {
  within(tx: Open): Queryable;
  whenEnded(tx: Open, ended: { committed: (whole?: boolean) => void; rolledBack: () => void }): boolean;
}

export interface TurnoutOptions<Tx, Open = Tx> {
  /** The unit in which order, routes and sequences are counted: usually the service's name. */
  readonly source: string;
  readonly database: Database<Tx> & OpenIn<Open>;
  /** The switchovers whose calls this code has given away: it makes none of those that they define itself any more. */
  readonly switchovers?: readonly SwitchoverDefinition[];
  readonly logger?: Logger;
  /** Calls in flight at most. Default 16. */
  readonly concurrency?: number;
  /** Calls that wait for a place at most; the sweeper makes the others. Default 1,000. */
  readonly maxWaiting?: number;
  /** When calls that were not answered are due again; default from 1 s up to 60 s. */
  readonly retry?: CallRetryPolicy;
  /** Where a reply can be asked for later, for {@link acceptedAnswer}: see `answerReplyStatus`. */
  readonly replyStatusUrl?: (effectKey: string) => string;
}

/**
 * Makes what a service publishes with. Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * const turnout = createTurnout({ source: 'orders', database: pgDatabase(pool), switchovers: [confirmation] });
 */
export function createTurnout<Tx, Open = Tx>(options: TurnoutOptions<Tx, Open>): Turnout<Tx, Open> {
  const { source, database, switchovers = [], logger = silentLogger } = options;
  checkOptions(source, switchovers);
  const queue = callQueue({
    database,
    logger,
    retry: options.retry ?? defaultCallRetry,
    concurrency: options.concurrency ?? 16,
    maxWaiting: options.maxWaiting ?? 1_000,
  });
  const byName = new Map(switchovers.map((switchover) => [switchover.name, switchover]));
  const ownOf = new WeakMap<Published, Own>();
  const startLater = starter(database, logger);
  const waiter = replyWaiter({ database, logger });
  const endpointsAgree = endpointsOnce(source, switchovers);
  const asking: Asking = { waiter, statusUrl: options.replyStatusUrl };

  async function publishAll(tx: Open, occurrences: readonly Occurrence[]): Promise<Published[]> {
    const requests = occurrences.map(({ event, data, id, headers }) => ({
      definition: event,
      data,
      ...(id === undefined ? {} : { id }),
      ...(headers === undefined ? {} : { headers: { ...headers } }),
    }));
    const queryable = database.within(tx);
    await endpointsAgree(queryable);
    const events = await publishEvents(queryable, { source, switchovers, deliver: switchovers.length > 0 }, requests);
    const awaited = events
      .filter(({ isKnown }) => !isKnown)
      .flatMap(({ stamps }) =>
        stamps.flatMap((stamp) => {
          const replyType = byName.get(stamp.switchover)?.reply?.name;
          return replyType === undefined ? [] : [{ ...stamp, replyType }];
        }),
      );
    if (awaited.length > 0) await awaitReplies(queryable, awaited);
    const all = events.map((event, index) => {
      const own = ownCalls(event, source, byName, queue, occurrences[index]!.keepsAnswers);
      const published = publishedOf(event, own, asking);
      ownOf.set(published, own);
      return { published, own };
    });
    database.whenEnded(tx, {
      committed: (whole) =>
        startLater(
          all.map(({ own }) => own),
          whole,
        ),
      rolledBack: () => all.forEach(({ own }) => own.discard()),
    });
    return all.map(({ published }) => published);
  }

  return {
    transaction: (work) => runTransaction(database, work),
    async publish(tx, event, data, eventOptions) {
      const [published] = await publishAll(tx, [occurrence(event, data, eventOptions)]);
      return published!;
    },
    publishAll,
    lockKeys: (tx, event, keys) => lockKeys(database.within(tx), event.topic.name, keys),
    async deliver(published) {
      const list = Array.isArray(published) ? (published as readonly Published[]) : [published as Published];
      const owns = list.map((each) => ownOf.get(each)).filter((own) => own !== undefined);
      const owed = await owedOf(database, owns, logger);
      if (owed === undefined) return;
      await Promise.all(owns.filter((own) => isOwed(own, owed)).map((own) => own.start(owed)));
    },
    async replyStatus(effectKey) {
      return statusOf((await readReplies(database, [effectKey]))[0]);
    },
    async close() {
      waiter.close();
      await startLater.idle();
      await queue.close();
    },
  };
}

/** The calls of one published event, from its transaction to their answers. */
interface Own {
  readonly effectKeys: readonly string[];
  /** Whether every endpoint knows a call that comes twice. */
  readonly bearsRepeats: boolean;
  /** Whether it was published before: its calls may be over, or others may be at them. */
  readonly isKnown: boolean;
  /**
   * Makes the calls; of an event that was published before, those that are owed. Resolves when they are over and written down.
   * Called again, does nothing more.
   */
  start(owed?: ReadonlySet<string>): Promise<void>;
  /** Makes none of them, and says why to those who ask. */
  leave(why: string): void;
  discard(): void;
  /** By switchover. */
  readonly answers: ReadonlyMap<string, Promise<Delivered>>;
  /** Rejects when the transaction was rolled back; never resolves. */
  readonly discarded: Promise<never>;
}

function ownCalls(
  published: PublishedEvent,
  source: string,
  byName: ReadonlyMap<string, SwitchoverDefinition>,
  queue: CallQueue,
  keepsAnswer = false,
): Own {
  const { id, type, version, topic, key, time, data, headers, isKnown } = published;
  const event: TurnoutEvent = { id, type, version, source, topic, key, time, data, headers };
  const calls = published.stamps
    // A known event may have stamps of switchovers that this code doesn't have (any more).
    .filter(({ route, switchover }) => route === 'rpc' && byName.has(switchover))
    .map((stamp) => {
      const answer = deferred<Delivered>();
      // Nobody need ask.
      answer.promise.catch(() => undefined);
      return { stamp, switchover: byName.get(stamp.switchover)!, answer };
    });
  let started: Promise<void> | undefined;
  const discarded = deferred<never>();
  discarded.promise.catch(() => undefined);
  return {
    discarded: discarded.promise,
    effectKeys: calls.map(({ stamp }) => stamp.effectKey),
    bearsRepeats: calls.every(({ switchover }) => switchover.endpoint !== 'bridged'),
    isKnown,
    answers: new Map(calls.map(({ stamp, answer }) => [stamp.switchover, answer.promise])),
    start(owed) {
      started ??= Promise.all(
        calls.map(async ({ stamp, switchover, answer }) => {
          // Who published it first may be at it, and a bridged endpoint doesn't know a call that comes twice.
          if (isKnown && (switchover.endpoint === 'bridged' || owed?.has(stamp.effectKey) !== true)) {
            answer.resolve({
              kind: 'pending',
              why: 'it was published before: its call is over, or made by others',
            });
            return;
          }
          const { answered, over } = queue.add({
            switchover,
            event,
            turn: stamp.turn,
            shadow: stamp.shadow,
            attempt: 1,
            keepsAnswer,
          });
          answer.resolve(await answered);
          await over;
        }),
      ).then(() => undefined);
      return started;
    },
    leave(why) {
      for (const { answer } of calls) answer.resolve({ kind: 'pending', why });
    },
    discard() {
      const error = new TurnoutError(
        'TURNOUT_TRANSACTION_ABORTED',
        `The transaction that published event ${id} was rolled back.`,
      );
      for (const { answer } of calls) answer.reject(error);
      discarded.reject(error);
    },
  };
}

/** What it takes to ask for replies. */
interface Asking {
  readonly waiter: ReplyWaiter;
  readonly statusUrl: ((effectKey: string) => string) | undefined;
}

function publishedOf({ id, seq, key, time, stamps, type }: PublishedEvent, own: Own, asking: Asking): Published {
  return {
    id,
    seq,
    key,
    time,
    stamps,
    async reply<Replied extends MaybeReply>(
      switchover: SwitchoverDefinition<Replied>,
      options: { readonly timeoutMs?: number } = {},
    ) {
      const stamp = stamps.find((each) => each.switchover === switchover.name);
      if (stamp === undefined) {
        throw new TurnoutError(
          'TURNOUT_SWITCHOVER_UNKNOWN',
          `Event ${id} (${type}) carries no route of switchover ${switchover.name}.`,
          {
            details: { switchover: switchover.name, type },
          },
        );
      }
      const { timeoutMs = switchover.timeoutMs + 1_000 } = options;
      const reply =
        stamp.route === 'rpc'
          ? await rpcReply(own, switchover, stamp, timeoutMs, asking)
          : await eventReply(own, switchover, stamp, timeoutMs, asking);
      // What it may be follows from the definition that was given.
      return reply as Reply<Replied>;
    },
  };
}

/** The call's answer; where a reply event is defined, also one that came in spite of a call without an answer. */
async function rpcReply(
  own: Own,
  switchover: SwitchoverDefinition,
  { effectKey }: PublishedStamp,
  timeoutMs: number,
  asking: Asking,
): Promise<Reply<MaybeReply>> {
  const until = performance.now() + timeoutMs;
  const enough = new AbortController();
  const delivered = await Promise.race([
    own.answers.get(switchover.name)!,
    sleep(timeoutMs, enough.signal).then((): Delivered => ({
      kind: 'pending',
      why: `no answer within ${timeoutMs} ms`,
    })),
  ]).finally(() => enough.abort());
  const told = replyOfCall(delivered, effectKey, asking);
  const isEnough = delivered.kind === 'done' && !saysNothing(delivered.outcome, delivered.answer);
  if (isEnough || switchover.reply === undefined) return told;
  return replyOf(switchover, await asking.waiter.wait(effectKey, Math.max(0, until - performance.now()))) ?? told;
}

function replyOfCall(delivered: Delivered, effectKey: string, asking: Asking): RpcReply {
  if (delivered.kind === 'pending') {
    return { route: 'rpc', status: 'pending', why: delivered.why, effectKey, ...urlOf(effectKey, asking) };
  }
  const { outcome, rejected, answer } = delivered;
  return { route: 'rpc', status: rejected ? 'rejected' : 'done', outcome, reply: answer };
}

async function eventReply(
  own: Own,
  switchover: SwitchoverDefinition,
  { effectKey }: PublishedStamp,
  timeoutMs: number,
  asking: Asking,
): Promise<Reply<MaybeReply>> {
  if (switchover.reply === undefined) return { route: 'event' };
  const known = await Promise.race([asking.waiter.wait(effectKey, timeoutMs), own.discarded]);
  return replyOf(switchover, known) ?? { route: 'event', status: 'pending', effectKey, ...urlOf(effectKey, asking) };
}

function urlOf(effectKey: string, { statusUrl }: Asking): { statusUrl?: string } {
  return statusUrl === undefined ? {} : { statusUrl: statusUrl(effectKey) };
}

/** What another process, the sweeper or the consumer has left in the database; undefined while there is nothing to hand out. */
function replyOf(
  { reply: awaited }: SwitchoverDefinition,
  known: KnownReply | undefined,
): Reply<MaybeReply> | undefined {
  // Its type is all that is known of what it holds: an event of another one would not be what the definition promises.
  const isAwaited = known?.event === undefined || known.event.type === awaited?.name;
  const status = statusOf(isAwaited ? known : { ...known, event: undefined });
  if (status.status !== 'done' && status.status !== 'rejected') return undefined;
  if (status.route === 'event') return { route: 'event', status: 'done', reply: status.reply };
  const { outcome, reply } = status;
  if (outcome === undefined) return undefined;
  // Headers are not kept; a body that was not kept is null.
  return { route: 'rpc', status: status.status, outcome, reply: { status: 200, body: null, ...reply, headers: {} } };
}

/** Starts the calls of events whose transactions were committed. */
interface Starter {
  /** `whole`: nothing of the transaction was taken back, so there is nothing to look up. */
  (committed: readonly Own[], whole?: boolean): void;
  /** Resolves when none is being looked up any more. */
  idle(): Promise<void>;
}

/**
 * A commit doesn't say that an event is there: its savepoint may have been rolled back in a way that nobody could follow
 * (plain SQL in a transaction of TypeORM's own, a query object, a name that is written otherwise). Therefore what is owed is read
 * before the first call, once for all that is told in one turn: a commit tells of all its events in one. Where Turnout has
 * seen every statement of the transaction and none could go back to a savepoint, the commit says enough.
 */
function starter(database: Queryable, logger: Logger): Starter {
  const gathered: { readonly own: Own; readonly isThere: boolean }[] = [];
  // Look-ups may overtake each other, starts must not: calls of one key are queued in the order of their commits.
  let inOrder: Promise<void> = Promise.resolve();

  function start(own: Own, owed: ReadonlySet<string> | undefined): void {
    if (owed === undefined) own.leave('it could not be seen whether the transaction was committed');
    else if (own.isKnown || isOwed(own, owed)) void own.start(owed);
    else own.leave('nothing is owed for it: it was rolled back, or another process has made the call');
  }

  function startLater(committed: readonly Own[], whole = false): void {
    const calling = committed.filter(({ effectKeys }) => effectKeys.length > 0);
    if (calling.length === 0) return;
    gathered.push(...calling.map((own) => ({ own, isThere: whole && own.bearsRepeats && !own.isKnown })));
    if (gathered.length > calling.length) return;
    const before = inOrder;
    inOrder = Promise.resolve().then(async () => {
      const told = gathered.splice(0);
      const unsure = told.filter(({ isThere }) => !isThere).map(({ own }) => own);
      const owed = await owedOf(database, unsure, logger);
      await before;
      for (const { own, isThere } of told) start(own, isThere ? new Set(own.effectKeys) : owed);
    });
  }

  return Object.assign(startLater, {
    idle: () => inOrder,
  });
}

/** Whether one of its calls is owed. */
function isOwed({ effectKeys }: Own, owed: ReadonlySet<string>): boolean {
  return effectKeys.some((key) => owed.has(key));
}

/** The effect keys for which a call is owed, as far as others can see; undefined if that could not be read. */
async function owedOf(database: Queryable, owns: readonly Own[], logger: Logger): Promise<Set<string> | undefined> {
  const effectKeys = owns.flatMap((own) => own.effectKeys);
  if (effectKeys.length === 0) return new Set();
  try {
    const { rows } = await database.query<{ effect_key: string }>(
      'select d.effect_key from turnout.rpc_delivery d where d.effect_key = any (array(select json_array_elements_text($1::text::json)))',
      [JSON.stringify(effectKeys)],
    );
    return new Set(rows.map((row) => row.effect_key));
  } catch (error) {
    logger.warn('It could not be seen whether a transaction was committed; the sweeper makes its calls.', { error });
    return undefined;
  }
}

interface Deferred<Value> {
  readonly promise: Promise<Value>;
  readonly resolve: (value: Value) => void;
  readonly reject: (error: unknown) => void;
}

function deferred<Value>(): Deferred<Value> {
  let resolve!: Deferred<Value>['resolve'];
  let reject!: Deferred<Value>['reject'];
  const promise = new Promise<Value>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

function checkOptions(source: string, switchovers: readonly SwitchoverDefinition[]): void {
  if (!isName(source)) {
    throw new TurnoutError('TURNOUT_DEFINITION_INVALID', `${JSON.stringify(source)} can't be the name of a source.`, {
      details: { path: 'source' },
    });
  }
  for (const [index, switchover] of switchovers.entries()) {
    const others = switchovers.slice(0, index);
    const path = `switchovers.${index}`;
    if (others.some(({ name }) => name === switchover.name)) {
      throw new TurnoutError('TURNOUT_DEFINITION_INVALID', `Switchover ${switchover.name} is given twice.`, {
        details: { path },
      });
    }
    const clash = others.find(
      ({ consumer, eventTypes }) =>
        consumer === switchover.consumer && eventTypes.some((type) => switchover.eventTypes.includes(type)),
    );
    if (clash !== undefined) {
      throw new TurnoutError(
        'TURNOUT_DEFINITION_INVALID',
        `Switchovers ${clash.name} and ${switchover.name} move consumer ${switchover.consumer} for the same event type.`,
        {
          details: { path },
        },
      );
    }
  }
}
