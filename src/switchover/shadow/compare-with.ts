import { handlerTable, isPlanned } from '../../consumer/index.ts';
import type { ConsumerDefinition, HandlerTable } from '../../consumer/index.ts';
import { invalidDefinition } from '../../errors/index.ts';
import type { TurnoutEvent } from '../../event/index.ts';
import { sampleOf } from '../../inbox/index.ts';
import type { Alike } from './difference.ts';
import { maskKey } from './mask.ts';
import type { Mask } from './mask.ts';
import { parsePattern } from './paths.ts';

export interface CompareOptions<Request = unknown, Data = unknown> {
  /**
   * Says that handlers have their effects in the given transaction and nowhere else: they are run and taken back. Needed unless
   * every handler is `planned`.
   */
  readonly pure?: true;
  /** Share of the calls that is compared, 0 to 1. Default 1. */
  readonly sample?: number;
  /** How long the event handler may take, in milliseconds; each statement of it too. Default 200: a call waits for twice that at most. */
  readonly timeoutMs?: number;
  /** Comparisons at once in this process; calls beyond that are not compared. Default 2. */
  readonly concurrency?: number;
  /** How much a side may write, in bytes of JSON; what is more is not compared. Default 65,536. */
  readonly maxBytes?: number;
  /** Places that may differ, such as `writes.mail.*.insert.sent_by` or `**.requestId`. */
  readonly ignore?: readonly string[];
  /** Functions by place (`**`: every value) that make both sides alike: round a number, sort a list. */
  readonly normalise?: Readonly<Record<string, (value: unknown, path: string) => unknown>>;
  /**
   * Whether what event handlers return is compared with the old handler's answer. Default: if it is a plain object; what a library
   * returns for a statement is none as a rule. False for handlers that return something else than an answer.
   */
  readonly answer?: boolean;
  /** Columns that are compared although the database makes their values up, as `mail.created_at`. */
  readonly compareColumns?: readonly string[];
  /** Places whose values examples keep; all others are masked. */
  readonly show?: readonly string[];
  /** What kind of case an event is (by its channel, its country …), so that the report shows which were compared. */
  readonly variant?: (event: TurnoutEvent<Data>) => string;
  /** Those that have to be seen; the report lists them even if none was. */
  readonly variants?: readonly string[];
  /** The version of the service, such as the commit: the report counts from when it was first seen. */
  readonly release?: string;
  /** The data of the event, for events that are too large to travel with the call (4 kB). */
  readonly eventOf?: (
    request: Request,
  ) =>
    | { readonly version: number; readonly data: unknown }
    | Promise<{ readonly version: number; readonly data: unknown }>;
}

/** What an endpoint is given to compare with; made by {@link compareWith}. */
export interface Comparison<Tx, Request = unknown> {
  readonly consumer: string;
  readonly table: HandlerTable;
  readonly sample: number;
  readonly timeoutMs: number;
  readonly concurrency: number;
  readonly maxBytes: number;
  readonly answer: boolean;
  readonly alike: Alike;
  readonly compareColumns: ReadonlySet<string>;
  readonly mask: Mask;
  readonly variants: readonly string[];
  readonly release: string;
  readonly variant: (event: TurnoutEvent<never>) => string;
  readonly eventOf: CompareOptions<Request>['eventOf'];
  /** What handlers are given as transaction; for types only. */
  readonly tx?: Tx;
}

/**
 * Lets an endpoint compare, in stage shadow, what its old handler does with what the handlers of a consumer would have done with the
 * event. Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * const endpoint = createEndpoint({
 *   consumer: 'email',
 *   database,
 *   order: 'none',
 *   shadow: compareWith(email, { pure: true, ignore: ['writes.mail.*.insert.sent_by'] }),
 * });
 */
export function compareWith<Tx, Request = unknown, Data = unknown>(
  definition: ConsumerDefinition<Tx>,
  options: CompareOptions<Request, Data> = {},
): Comparison<Tx, Request> {
  const { sample = 1, timeoutMs = 200, concurrency = 2, maxBytes = 65_536, release = '' } = options;
  const { name, handlers, mode } = definition;
  const unplanned = handlers.find((handler) => !isPlanned(handler));
  if (unplanned !== undefined && (options.pure !== true || mode === 'detached')) {
    throw invalidDefinition(
      'shadow.pure',
      `The handler of ${unplanned.event.name} can't be run for a comparison: it is neither planned nor ${mode === 'detached' ? 'given a transaction' : 'declared pure'}.`,
    );
  }
  if (!(sample >= 0 && sample <= 1))
    throw invalidDefinition('shadow.sample', `The sample of ${name} is ${sample}; it is a share from 0 to 1.`);
  for (const [path, value] of Object.entries({ timeoutMs, concurrency, maxBytes }))
    if (!(value >= 1))
      throw invalidDefinition(`shadow.${path}`, `The comparison of ${name} can't have ${path} ${value}.`);
  const variant = options.variant as Comparison<Tx>['variant'] | undefined;
  return Object.freeze({
    consumer: name,
    table: handlerTable(definition),
    sample: sampleOf(sample),
    timeoutMs,
    concurrency,
    maxBytes,
    answer: options.answer ?? true,
    alike: {
      ignore: (options.ignore ?? []).map(parsePattern),
      normalise: Object.entries(options.normalise ?? {}).map(([path, by]) => [parsePattern(path), by] as const),
    },
    compareColumns: new Set(options.compareColumns ?? []),
    mask: { show: (options.show ?? []).map(parsePattern), key: maskKey() },
    variants: options.variants ?? [],
    release,
    variant: variant ?? (() => ''),
    eventOf: options.eventOf,
  });
}
