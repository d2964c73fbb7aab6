/** The result of a statement, as far as Turnout reads it; the result of `pg` fits. */
export interface QueryResultLike<Row> {
  readonly rows: Row[];
  /** Rows changed or returned; null for statements that have no count. */
  readonly rowCount: number | null;
}

/** Anything that runs SQL with `$1` parameters. A `PoolClient` of `pg` fits as it is. */
export interface Queryable {
  query<Row = Record<string, unknown>>(text: string, values?: unknown[]): Promise<QueryResultLike<Row>>;
}

/** One connection, held until it is released. */
export interface Session extends Queryable {
  /**
   * Runs a statement and gives rows as arrays of text or null, with nothing parsed: the fast way for the relay, which runs the
   * same statement tens of times a second. So it is prepared once per session under a name (derived from its text), and `values` are text too.
   */
  queryText(text: string, values?: unknown[]): Promise<(string | null)[][]>;
  /** Resolves when the connection is lost; never rejects. */
  readonly lost: Promise<void>;
  /** Gives the connection back; with `destroy`, closes it instead (session settings and locks go with it). Called twice, does nothing. */
  release(destroy?: boolean): void;
}

/** How a rehearsal went, before it was taken back. */
export type Rehearsed<Result> =
  | { readonly kind: 'done'; readonly result: Result }
  | { readonly kind: 'threw'; readonly error: unknown }
  /** It had not ended in time. */
  | { readonly kind: 'late' };

/**
 * A Postgres database, as the user's own library reaches it. `Tx` is what that library calls a transaction
 * (`PoolClient`, `EntityManager`), and is what handlers and `turnout.transaction()` are given.
 */
// `NoInfer`: an adapter may take more where it is told of an open transaction (a `QueryRunner`) than it hands out.
export interface Database<Tx = unknown> {
  /** A connection of its own, for locks and settings that live as long as a session. Throws TURNOUT_DATABASE_UNREACHABLE, TURNOUT_POOL_TIMEOUT. */
  connect(): Promise<Session>;
  /** One statement on any connection, committed when it resolves. */
  query<Row = Record<string, unknown>>(text: string, values?: unknown[]): Promise<QueryResultLike<Row>>;
  /**
   * Begins a transaction, runs `work`, commits when it resolves and rolls back when it rejects. While `work` runs,
   * bound pools (see `turnout/pg`, `turnout/typeorm`) of the same database join the transaction. Called inside one, it
   * is a savepoint of it: what `whenEnded` tells comes at the end of the outermost.
   * Rejects with TURNOUT_TRANSACTION_ABORTED if the commit turned out to be a rollback.
   */
  transaction<Result>(work: (tx: Tx) => Promise<Result>): Promise<Result>;
  /**
   * Inside {@link transaction}: runs `work` in a savepoint and takes back all that it wrote, whatever it did. Bound pools join.
   * Commands that end a transaction are refused there, and cursors; from its end on, whatever code of it still runs
   * is refused what it asks for. (TURNOUT_JOIN_REFUSED; with `rehearsal: true` in its details it is refused in a rehearsal only.) What it published is told of a rollback. `timeoutMs` bounds the work, and each of its statements.
   * Throws TURNOUT_TRANSACTION_REQUIRED; any other error means that the transaction must not be committed.
   */
  rehearse<Result>(
    work: (tx: Tx) => Promise<Result>,
    options: { readonly timeoutMs: number },
  ): Promise<Rehearsed<Result>>;
  /** Statements inside an open transaction of the user's. Throws TURNOUT_TRANSACTION_REQUIRED where it can be known that none is open. */
  within(tx: NoInfer<Tx>): Queryable;
  /**
   * Runs one of two functions when the user's own transaction has ended, if the library can tell. `whole` is true if
   * it is certain that nothing in it was taken back to a savepoint.
   * Gives false if it can't: then the caller has to say so (`turnout.deliver`).
   */
  whenEnded(tx: NoInfer<Tx>, ended: { committed: (whole?: boolean) => void; rolledBack: () => void }): boolean;
  /** The most connections there can be at once, if known. */
  readonly maxConnections: number | undefined;
}
