// `npm run explore -- [--json] [--family name] [--sabotage name]`
//
// Sees every state that a switchover can get into within bounds, with the shipped decisions at work, and looks in each for what
// must never be. Then each way to build it wrongly has to be found. See docs/exploration.md.
import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { breakages, isBreakage } from './breakages.ts';
import { families } from './families.ts';
import type { Answer, Question } from './worker.ts';

const { values } = parseArgs({
  options: { json: { type: 'boolean' }, family: { type: 'string' }, sabotage: { type: 'string' } },
});
if (values.sabotage !== undefined && !isBreakage(values.sabotage))
  throw new Error(`There is no sabotage ${values.sabotage}: ${Object.keys(breakages).join(', ')}.`);
if (values.family !== undefined && !families.some(({ name }) => name === values.family))
  throw new Error(`There is no family ${values.family}: ${families.map(({ name }) => name).join(', ')}.`);

const isAll = values.family === undefined && values.sabotage === undefined;
const asked = isAll
  ? [...families.map(({ name }) => name), ...Object.keys(breakages)]
  : [values.family, values.sabotage].filter((name) => name !== undefined);

/** Progress for people; the result of `--json` is alone on the standard output. */
const say = (text: string): void => void process.stderr.write(`${text}\n`);

function ask(name: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(new URL('worker.ts', import.meta.url)));
    child.once('message', (answer) => {
      resolve(answer as Answer);
      child.kill();
    });
    child.once('error', reject);
    child.once('exit', (code, signal) => reject(new Error(`Exploring ${name} ended with ${code ?? signal}.`)));
    child.send({ name } satisfies Question);
  });
}

const began = performance.now();
const answers = new Map<string, Answer>();
const waiting = [...asked];
await Promise.all(
  Array.from({ length: Math.min(2, availableParallelism()) }, async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      const answer = await ask(name);
      answers.set(name, answer);
      tell(name, answer);
    }
  }),
);

function tell(name: string, { explored, seconds }: Answer): void {
  const { states, steps, depth, exhausted, violation } = explored;
  const size = `${states} states, ${steps} steps, ${depth} deep, ${seconds.toFixed(1)} s`;
  if (!isBreakage(name)) {
    const family = families.find((each) => each.name === name)!;
    const verdict = violation === undefined ? (exhausted ? 'no violation' : 'NOT EXHAUSTED') : 'VIOLATION';
    say(`${name}: ${verdict}; ${size}\n    ${family.about}\n    ${JSON.stringify(family.bounds)}`);
  } else say(`\n${name} (${breakages[name]}): ${violation === undefined ? 'NOT FOUND' : 'found'}; ${size}`);
  if (violation === undefined) return;
  say(`    ${violation.what}`);
  violation.trace.forEach((label, index) => say(`    ${String(index + 1).padStart(3)}  ${label}`));
  say(`         ${violation.state}`);
}

const sound = families.flatMap(({ name, about, bounds }) => {
  const answer = answers.get(name);
  return answer === undefined ? [] : [{ name, about, bounds, ...answer }];
});
const broken = Object.keys(breakages).flatMap((name) => {
  const answer = answers.get(name);
  return answer === undefined ? [] : [{ name, ...answer }];
});
const states = sound.reduce((sum, { explored }) => sum + explored.states, 0);
const exhausted = sound.every(({ explored }) => explored.exhausted);
const found = broken.filter(({ explored }) => explored.violation !== undefined).length;
// A sabotage that was asked for by name is judged as if it were shipped: it has to fail.
const judged = values.sabotage === undefined ? sound : [...sound, ...broken];
const violations = judged.filter(({ explored }) => explored.violation !== undefined).length;
const ok = violations === 0 && exhausted && (values.sabotage !== undefined || found === broken.length);
const seconds = Math.round((performance.now() - began) / 1000);

say(
  `\n${sound.length} families: ${states} states, ${violations} violations, ${exhausted ? 'exhausted' : 'not exhausted'}; ` +
    `${found} of ${broken.length} breakages found; ${seconds} s`,
);
if (values.json === true) {
  const result = {
    ok,
    states,
    exhausted,
    violations,
    seconds,
    families: sound.map(({ name, bounds, explored, seconds }) => ({ name, bounds, ...explored, seconds })),
    breakages: broken.map(({ name, explored }) => ({
      name,
      found: explored.violation !== undefined,
      states: explored.states,
      ...explored.violation,
    })),
  };
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
process.exitCode = ok ? 0 : 1;
