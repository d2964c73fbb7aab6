import { consumers } from './world.ts';
import type { Consumer } from './world.ts';
import type { Standing } from './watch.ts';

/** Where the story is told. */
export interface View {
  title(text: string): void;
  /** A new part of the story begins. */
  chapter(heading: string): void;
  /** What happens in it. */
  say(text: string): void;
  standing(standing: Standing): void;
  /** Printed as it is, under everything. */
  result(text: string): void;
  close(): void;
}

const clock = (beganAt: number): string => {
  const seconds = Math.floor((performance.now() - beganAt) / 1000);
  return `${String(Math.floor(seconds / 60)).padStart(2, '0')}:${String(seconds % 60).padStart(2, '0')}`;
};

/** A line for everything that happens: for logs and pipes. */
export function plainView(write: (text: string) => void): View {
  const beganAt = performance.now();
  const line = (text: string): void => write(`${clock(beganAt)}  ${text}\n`);
  let last: Standing | undefined;
  let printedAt = 0;
  return {
    title: line,
    chapter(heading) {
      if (last !== undefined) line(`      ${summary(last)}`);
      write('\n');
      line(`== ${heading}`);
    },
    say: (text) => line(`   ${text}`),
    standing(standing) {
      last = standing;
      if (performance.now() - printedAt < 5_000) return;
      printedAt = performance.now();
      line(`      ${summary(standing)}`);
    },
    result: (text) => write(`\n${text}\n`),
    close: () => undefined,
  };
}

function summary(standing: Standing): string {
  const services = consumers.map((consumer) => {
    const way = consumer === 'analytics' ? '' : ` (${standing.stage[consumer]})`;
    return `${consumer}${way} ${standing.effects[consumer]}`;
  });
  return `${standing.orders} orders, ${standing.events} events; effects: ${services.join(', ')}`;
}

const bold = (text: string): string => `\x1b[1m${text}\x1b[0m`;
const dim = (text: string): string => `\x1b[2m${text}\x1b[0m`;
const green = (text: string): string => `\x1b[32m${text}\x1b[0m`;
const yellow = (text: string): string => `\x1b[33m${text}\x1b[0m`;
const cyan = (text: string): string => `\x1b[36m${text}\x1b[0m`;

/** The story scrolls by; under it stands a table that is always up to date. */
export function liveView(output: NodeJS.WriteStream): View {
  const beganAt = performance.now();
  let standing: Standing | undefined;
  let ordersBefore: { orders: number; atMs: number } | undefined;
  let perSecond = 0;
  let panelLines = 0;

  const erase = (): string => (panelLines === 0 ? '' : `\x1b[${panelLines}A\r\x1b[J`);
  const draw = (): string => {
    const lines = standing === undefined ? [] : panel(standing, perSecond, clock(beganAt));
    panelLines = lines.length;
    return lines.map((line) => `${line}\n`).join('');
  };
  // One write, so that nothing flickers.
  const print = (text: string): void => void output.write(`${erase()}${text}${draw()}`);
  const timer = setInterval(() => print(''), 500);
  timer.unref();

  return {
    title: (text) => print(`${bold(text)}\n`),
    chapter: (heading) => print(`\n${dim(clock(beganAt))}  ${bold(cyan(heading))}\n`),
    say: (text) => print(`       ${text}\n`),
    standing(next) {
      const atMs = performance.now();
      ordersBefore ??= { orders: next.orders, atMs };
      if (atMs - ordersBefore.atMs >= 2_000) {
        perSecond = ((next.orders - ordersBefore.orders) * 1000) / (atMs - ordersBefore.atMs);
        ordersBefore = { orders: next.orders, atMs };
      }
      standing = next;
      print('');
    },
    result(text) {
      print(`\n${text}\n`);
    },
    close() {
      clearInterval(timer);
      standing = undefined;
      print('');
    },
  };
}

function panel(standing: Standing, perSecond: number, time: string): string[] {
  const row = (consumer: Consumer): string => {
    const way = consumer === 'analytics' ? 'event' : standing.stage[consumer];
    const expected = consumer === 'email' ? standing.orders : standing.events;
    const behind = expected - standing.effects[consumer];
    const owed = consumer === 'analytics' ? 0 : standing.owedCalls[consumer];
    return [
      consumer.padEnd(11),
      (way === 'event' || way === 'done' ? green : yellow)(way.padEnd(6)),
      String(standing.effects[consumer]).padStart(8),
      (behind > 0 ? yellow : dim)(String(behind).padStart(9)),
      (owed > 0 ? yellow : dim)(String(owed).padStart(11)),
      (standing.held[consumer] > 0 ? yellow : dim)(String(standing.held[consumer]).padStart(11)),
      (standing.parked[consumer] > 0 ? yellow : dim)(String(standing.parked[consumer]).padStart(7)),
    ].join(' ');
  };
  return [
    '',
    dim('─'.repeat(72)),
    `${bold(`${standing.orders} orders`)}, ${standing.events} events, ${perSecond.toFixed(0)} orders/s  ${dim(time)}`,
    dim('service     way     effects   to come  calls owed  held early parked'),
    ...consumers.map(row),
  ];
}
