import { errorKinds } from '../errors/index.ts';
import type { ErrorKind } from '../errors/index.ts';

/** Where a command writes, and how it learns that it is to stop. */
export interface Io {
  readonly cwd: string;
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  /** Whether a person reads standard error: then log lines are text, not JSON. */
  readonly interactive: boolean;
  /** Whether --json was given: the last line of standard output is one JSON object. */
  readonly json?: boolean;
  /** Called by commands that run until they are stopped; aborted on SIGTERM and SIGINT. */
  readonly stopSignal: () => AbortSignal;
}

/** What a command has to say: for programs, and for people. */
export interface Report {
  readonly data: Readonly<Record<string, unknown>>;
  readonly text: string;
}

/** `value` as one line of JSON; bigints as text. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_key, member: unknown) => (typeof member === 'bigint' ? member.toString() : member));
}

/** What is told of a failure. */
export interface ErrorDescription {
  readonly code: string;
  readonly message: string;
  readonly remedy?: string;
  readonly details?: unknown;
}

/** What is told of a failed command. Read by its fields, not by `instanceof`: the configuration may have loaded another instance. */
export function describeError(error: unknown): ErrorDescription {
  const message = error instanceof Error ? error.message : String(error);
  const code = typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : 'UNKNOWN';
  const kind = (errorKinds as Readonly<Record<string, ErrorKind>>)[code];
  if (kind === undefined) return { code, message: message === '' ? code : message };
  const details = (error as { details?: unknown }).details;
  return {
    code,
    message: message.replace(` ${kind.remedy}`, ''),
    remedy: kind.remedy,
    ...(details === undefined ? {} : { details }),
  };
}

/** The same for people. */
export function errorText(error: unknown): string {
  const described = describeError(error);
  const problems = problemsOf(described);
  if (problems.length > 1)
    return `turnout: There are ${problems.length} reasons against it.\n${problems.map(textOf).join('')}`;
  return `turnout: ${textOf(described)}`;
}

function textOf({ code, message, remedy, details }: ErrorDescription): string {
  return `${message}\n${findingsOf(details)}${remedy === undefined ? '' : `  ${remedy}\n`}  [${code}]\n`;
}

/** Where several things stand against a stage change, each of them, with its own remedy. */
function problemsOf({ details }: ErrorDescription): ErrorDescription[] {
  const problems = (details as { problems?: unknown } | undefined)?.problems;
  if (!Array.isArray(problems)) return [];
  return (problems as { code?: string; message: string; details?: unknown }[]).map((each) => ({
    code: each.code ?? 'UNKNOWN',
    message: each.message,
    remedy: (errorKinds as Readonly<Record<string, ErrorKind>>)[each.code ?? '']?.remedy ?? '',
    details: each.details,
  }));
}

/** What a check found that speaks against a promotion. */
function findingsOf(details: unknown): string {
  const findings = (details as { findings?: unknown } | undefined)?.findings;
  if (!Array.isArray(findings)) return '';
  return (findings as { check: string; verdict: string; why: string; remedy: string }[])
    .filter(({ verdict }) => verdict !== 'ready')
    .map(({ check, verdict, why, remedy }) => {
      const sentence = remedy === '' ? why : `${why.replace(/\.?$/, '.')} ${remedy}`;
      return `  - ${check}: ${verdict}: ${sentence}\n`;
    })
    .join('');
}

/** A stage as people read it. */
export function stageText({ stage, percent }: { readonly stage: string; readonly percent: number }): string {
  return stage === 'ramp' ? `ramp ${percent} %` : stage;
}

/** Columns as wide as their widest cell. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows];
  const widths = head.map((_cell, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  return all
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
