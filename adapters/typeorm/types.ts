/** What Turnout uses of a `QueryRunner` of TypeORM on Postgres. */
export interface QueryRunnerLike<Manager = unknown> {
  readonly manager: Manager;
  readonly isTransactionActive: boolean;
  connect(): Promise<unknown>;
  startTransaction(): Promise<void>;
  commitTransaction(): Promise<void>;
  rollbackTransaction(): Promise<void>;
  release(): Promise<void>;
}

/** What Turnout uses of an `EntityManager`. */
export interface EntityManagerLike {
  readonly queryRunner?: QueryRunnerLike | undefined;
}

/** What Turnout uses of a `DataSource` of TypeORM, 0.3.20 or later, on Postgres; the user's own fits as it is. */
export interface DataSourceLike<Manager extends EntityManagerLike = EntityManagerLike> {
  readonly manager: Manager;
  readonly driver: object;
  readonly options: object;
  readonly subscribers: object[];
  createQueryRunner(): QueryRunnerLike<Manager>;
}
