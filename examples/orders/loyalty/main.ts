import { Pool } from 'pg';
import { joinPool } from 'turnout/pg';
import { required } from '../environment.ts';
import { serve } from '../serve.ts';
import { loyaltyApp } from './app.ts';

// Joined: while Turnout has a transaction open for a request, the ledger's statements are part of it.
const pool = joinPool(new Pool({ connectionString: required('DATABASE_URL'), max: 10 }));

await serve('loyalty', loyaltyApp(pool, required('RELEASE')), Number(required('PORT')), () => pool.end());
