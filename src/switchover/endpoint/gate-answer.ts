// What an old handler's answer says of its effect, and what the gate answers: plain data in, plain data out, no I/O.
import type { ErrorCode } from '../../errors/index.ts';
import type { Effect, Verdict } from '../../inbox/index.ts';
import { formatTurn } from '../calls/call-headers.ts';
import { isDefinitiveByDefault } from '../calls/definitive-status.ts';

/** What the old handler answered, complete. */
export interface HandlerAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[]>>;
  readonly body: Buffer;
  /** False: nobody handled the request (no route matched, or all passed it on), so a 404 refuses nothing. Default true. */
  readonly handled?: boolean;
  /** Whether it refuses for good, where the protocol's own code says so better than the status that is only like it. */
  readonly definitive?: boolean;
}

/** What to send. */
export type GateAnswer =
  /** No Turnout headers: let the request go on as if the gate were not there. */
  | { readonly kind: 'pass' }
  /** What the handler answered, with `headers` added and those of `withheld` left out: `answer` is without them already. */
  | {
      readonly kind: 'handler';
      readonly answer: HandlerAnswer;
      readonly headers: Readonly<Record<string, string>>;
      readonly withheld: readonly string[];
    }
  /** The gate's own answer, or a stored one; the handler has not run, or its answer can't be sent. */
  | {
      readonly kind: 'gate';
      readonly status: number;
      readonly headers: Readonly<Record<string, string | readonly string[]>>;
      readonly body: Buffer;
    };

/** What a verdict of `apply` says to the caller; `given` is what the handler answered, if it has run. */
export function answerTo(verdict: Verdict, given: HandlerAnswer | undefined): GateAnswer {
  switch (verdict.kind) {
    case 'done':
      if (!verdict.repeated && given !== undefined) return handlerAnswer(given, { 'turnout-outcome': verdict.outcome });
      return stored(verdict.answer as KeptAnswer | null, verdict.outcome, verdict.repeated);
    case 'early':
      return refusal(425, 'TURNOUT_EFFECT_EARLY', 'Events of the key before this one are missing.', {
        'turnout-last-number': formatTurn({ generation: verdict.generation, number: verdict.lastNumber }),
      });
    case 'running':
      return refusal(409, 'TURNOUT_EFFECT_RUNNING', 'The effect, or another one of its key, is being applied.', {
        'retry-after': '1',
      });
    case 'reused':
      return refusal(422, 'TURNOUT_EFFECT_KEY_REUSED', `The effect key is known with another ${verdict.what}.`);
    case 'halted':
      return refusal(503, 'TURNOUT_GATE_HALTED', verdict.reason);
  }
}

/** An answer as the inbox keeps it. */
interface KeptAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[]>>;
  /** Base64 if it is no text; null if it was too large to keep. */
  readonly body: string | null;
  readonly encoding: 'text' | 'base64';
}

function stored(kept: KeptAnswer | null, outcome: Effect['outcome'], repeated: boolean): GateAnswer {
  // Else a repeat of what was given up would look like one of what was done.
  const first = repeated && outcome !== 'applied' ? { 'turnout-first-outcome': outcome } : undefined;
  const headers = { 'turnout-outcome': repeated ? 'duplicate' : outcome, ...first };
  // It came as an event, or was skipped: nobody answered, which a caller can't see in a message of a schema's default
  // values, so a header says it. An object is what most callers can parse.
  if (kept === null) {
    const status = outcome === 'rejected' || first !== undefined ? 422 : 200;
    return {
      kind: 'gate',
      status,
      headers: { 'content-type': 'application/json', 'turnout-answer': 'none', ...headers },
      body: Buffer.from('{}'),
    };
  }
  const body =
    kept.body === null ? Buffer.alloc(0) : Buffer.from(kept.body, kept.encoding === 'text' ? 'utf8' : 'base64');
  return { kind: 'gate', status: kept.status, headers: { ...kept.headers, ...headers }, body };
}

/** About one connection, one moment, or one person: not to be given again. */
const notKept = new Set([
  'connection',
  'content-length',
  'date',
  'keep-alive',
  'set-cookie',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);

/** The gate's own words about an effect. A handler that passes on what another gate told it must not speak for this one. */
const isOwnHeader = (name: string): boolean => name.toLowerCase().startsWith('turnout-');
/** Of these, one is passed on: it says that there is no outcome, and why. */
const errorHeader = 'turnout-error';

/** What the handler answered, as it is sent. */
export function handlerAnswer(given: HandlerAnswer, headers: Readonly<Record<string, string>> = {}): GateAnswer {
  const withheld = Object.keys(given.headers).filter((name) => isOwnHeader(name) && name.toLowerCase() !== errorHeader);
  const rest = Object.fromEntries(Object.entries(given.headers).filter(([name]) => !withheld.includes(name)));
  return { kind: 'handler', answer: { ...given, headers: rest }, headers, withheld };
}

/** What an answer says of the effect; undefined: nothing that could be relied on. */
export function outcomeOf(
  answer: HandlerAnswer,
  isDefinitive: ((status: number) => boolean) | undefined,
  maxKeptBytes: number,
): Effect | undefined {
  const { status, headers, handled = true } = answer;
  // Not the handler's word but that of a gate, in here or behind it: it has refused, or rolled back.
  if (Object.keys(headers).some((name) => name.toLowerCase() === errorHeader)) return undefined;
  if (status >= 200 && status < 300) return { outcome: 'applied', answer: kept(answer, maxKeptBytes) };
  if (status < 400 || status >= 500 || (status === 404 && !handled)) return undefined;
  const refuses = isDefinitive?.(status) ?? answer.definitive ?? isDefinitiveByDefault(status);
  if (!refuses) return undefined;
  return { outcome: 'rejected', answer: kept(answer, maxKeptBytes), reason: `the handler answered ${status}` };
}

function kept({ status, headers, body }: HandlerAnswer, maxKeptBytes: number): KeptAnswer {
  const lasting = Object.fromEntries(
    Object.entries(headers).filter(([name]) => !notKept.has(name) && !isOwnHeader(name)),
  );
  if (body.length > maxKeptBytes) return { status, headers: lasting, body: null, encoding: 'text' };
  const text = body.toString();
  // jsonb can't hold NUL.
  const isText = Buffer.from(text).equals(body) && !text.includes('\0');
  return {
    status,
    headers: lasting,
    body: isText ? text : body.toString('base64'),
    encoding: isText ? 'text' : 'base64',
  };
}

/** An answer of the gate itself, without an outcome: the call stays owed. */
export function refusal(
  status: number,
  code: ErrorCode | (string & {}),
  message: string,
  headers: Record<string, string> = {},
): GateAnswer {
  return {
    kind: 'gate',
    status,
    headers: { 'content-type': 'application/json', 'turnout-error': code, ...headers },
    body: Buffer.from(JSON.stringify({ error: { code, message } })),
  };
}

/** What a refusal of the gate says, for protocols that have a place for text alone. */
export function refusalText(body: Buffer): string {
  try {
    const { error } = JSON.parse(body.toString()) as { error?: { message?: string } };
    return error?.message ?? '';
  } catch {
    return '';
  }
}
