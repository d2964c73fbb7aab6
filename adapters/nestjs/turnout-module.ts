// Two modules: what is injected is global, and the life cycle is not. Nest ends modules from the root downwards, and global ones
// last; so the services here are stopped before the pools of the modules beneath are closed.
import { Inject, Logger, Module } from '@nestjs/common';
import type {
  DynamicModule,
  FactoryProvider,
  ModuleMetadata,
  OnApplicationBootstrap,
  OnApplicationShutdown,
  Provider,
} from '@nestjs/common';
import { together } from '../../src/lifecycle/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';

/** What {@link InjectTurnout} injects. */
export const TURNOUT = Symbol('turnout');
const OPTIONS = Symbol('turnout options');

/**
 * Injects the `Turnout` that the module was given, to publish with.
 *
 * @example
 * constructor(@InjectTurnout() private readonly turnout: Turnout<PoolClient>) {}
 */
export const InjectTurnout = (): ParameterDecorator & PropertyDecorator => Inject(TURNOUT);

export interface TurnoutModuleOptions {
  /** What the application publishes with; closed when it ends. A service that only has endpoints needs none. */
  readonly turnout?: { close(): Promise<void> };
  /** Run with the application: a relay, an rpcSweeper, an outboxKeeper. Started in this order, stopped in the opposite one. */
  readonly services?: readonly Service[];
  /** Told if a service ends by itself. Default: an error in Nest's log; the application goes on. */
  readonly onFailure?: (error: unknown) => void;
}

export interface TurnoutModuleAsyncOptions extends Pick<ModuleMetadata, 'imports'> {
  /** Tokens of what `useFactory` is given. */
  readonly inject?: FactoryProvider['inject'];
  readonly useFactory: (...dependencies: never[]) => TurnoutModuleOptions | Promise<TurnoutModuleOptions>;
}

/**
 * Turnout as a part of a Nest application; import it once, in the root module. Services start when the application is ready, and stop
 * with `app.close()`, after the last request (on signals: `app.enableShutdownHooks()`). If one can't start, the application doesn't.
 *
 * @example
 * imports: [
 *   TurnoutModule.forRootAsync({
 *     imports: [DatabaseModule],
 *     inject: [Pool],
 *     useFactory: (pool: Pool) => {
 *       const database = pgDatabase(pool);
 *       return {
 *         turnout: createTurnout({ source: 'orders', database, switchovers: [confirmation] }),
 *         services: [rpcSweeper({ source: 'orders', database, switchovers: [confirmation] })],
 *       };
 *     },
 *   }),
 * ],
 */
export class TurnoutModule implements OnApplicationBootstrap, OnApplicationShutdown {
  readonly #options: TurnoutModuleOptions;
  readonly #services: Service | undefined;

  constructor(options: TurnoutModuleOptions) {
    this.#options = options;
    const { services = [] } = options;
    this.#services = services.length === 0 ? undefined : together('turnout', services);
  }

  static forRoot(options: TurnoutModuleOptions): DynamicModule {
    return moduleOf([], { provide: OPTIONS, useValue: options });
  }

  /** With what other modules provide. */
  static forRootAsync({ imports = [], inject = [], useFactory }: TurnoutModuleAsyncOptions): DynamicModule {
    return moduleOf(imports, { provide: OPTIONS, useFactory: useFactory as FactoryProvider['useFactory'], inject });
  }

  async onApplicationBootstrap(): Promise<void> {
    const services = this.#services;
    if (services === undefined) return;
    await services.start();
    void services.failed().then((error) => {
      if (error !== undefined) (this.#options.onFailure ?? logFailure)(error);
    });
  }

  async onApplicationShutdown(): Promise<void> {
    await this.#services?.stop();
    await this.#options.turnout?.close();
  }
}
// Decorators as functions: these sources run as they are, and no compiler need know of decorators.
Inject(OPTIONS)(TurnoutModule, undefined, 0);
Module({})(TurnoutModule);

/** Everywhere at hand, without hooks of its own. */
class TurnoutProviders {}
Module({})(TurnoutProviders);

function moduleOf(imports: NonNullable<ModuleMetadata['imports']>, options: Provider): DynamicModule {
  const turnout: Provider = {
    provide: TURNOUT,
    inject: [OPTIONS],
    useFactory: ({ turnout }: TurnoutModuleOptions) => turnout,
  };
  return {
    module: TurnoutModule,
    imports: [
      { module: TurnoutProviders, global: true, imports, providers: [options, turnout], exports: [OPTIONS, TURNOUT] },
    ],
  };
}

function logFailure(error: unknown): void {
  new Logger('Turnout').error(
    'A service has ended by itself; it runs again after a restart of the application.',
    error instanceof Error ? error.stack : String(error),
  );
}
