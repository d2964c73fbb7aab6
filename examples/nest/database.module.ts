import { Module } from '@nestjs/common';
import type { DynamicModule } from '@nestjs/common';
import { Pool } from 'pg';

/** The pool of one application, as it would be without Turnout. */
@Module({})
export class DatabaseModule {
  static forRoot(pool: Pool): DynamicModule {
    return { module: DatabaseModule, providers: [{ provide: Pool, useValue: pool }], exports: [Pool] };
  }
}
