import { Pool } from 'pg';
import { joinPool } from 'turnout/pg';
import { required } from '../environment.ts';
import { serve } from '../serve.ts';
import { emailApp } from './app.ts';
import { mailboxOn } from './mailbox.ts';

// Joined: while Turnout has a transaction open for a request, the mailbox's statements are part of it.
const pool = joinPool(new Pool({ connectionString: required('DATABASE_URL'), max: 10 }));

await serve('email', emailApp(pool, mailboxOn(pool), required('RELEASE')), Number(required('PORT')), () => pool.end());
