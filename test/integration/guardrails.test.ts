import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  checkSwitchover,
  consumerEvidence,
  createRelay,
  defineConsumer,
  guardrails,
  on,
  runConsumer,
  setStage,
  silentLogger,
  switchoverHistory,
  webhook,
} from 'turnout';
import type { Alert, GuardrailRules, SwitchoverCheck } from 'turnout';
import { inMemoryBroker } from 'turnout/testing';
import { applyTopics } from '../../src/relay/index.ts';
import { unreadMs } from '../../src/switchover/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { memoryLogger } from './fixtures/consumer.ts';
import { consumer, emailSwitchover, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';

/** A real receiver of webhooks, answering what it is told to. */
async function receiver(answers: number[] = []) {
  const alerts: Alert[] = [];
  const statuses = [...answers];
  const server = createServer((request, response) => {
    let text = '';
    request.on('data', (chunk: Buffer) => (text += chunk.toString()));
    request.on('end', () => {
      const status = statuses.shift() ?? 204;
      if (status === 0) return; // never answers
      if (status < 300) alerts.push(JSON.parse(text) as Alert);
      response.writeHead(status).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return {
    alerts,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`,
    left: () => statuses.length,
  };
}

/** A switchover in stage event, with relay and consumer running; the handler fails while `broken`. */
async function world(rules: GuardrailRules = {}) {
  const [from, to] = await Promise.all([producer(), consumer()]);
  const email = { ...emailSwitchover(() => to.url), guardrails: rules };
  await from.register(email);
  const broker = inMemoryBroker();
  await applyTopics(broker.topics(), [OrderPlaced, OrderChanged]);
  const turnout = from.turnout([email]);
  const state = { broken: false };
  const handle = async (event: { data: { orderId: string; step: number } }, { tx }: { tx: { query: Function } }) => {
    if (state.broken) throw new Error('wrong template');
    await tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [
      event.data.orderId,
      event.data.step,
      'event',
    ]);
  };
  const definition = defineConsumer(to.database, {
    name: 'email',
    from: 'beginning',
    inSwitchover: [OrderPlaced, OrderChanged],
    retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 2 },
    handlers: [on(OrderPlaced, handle), on(OrderChanged, handle)],
  });
  const relay = createRelay({ database: from.database, publisher: broker.publisher(), logger: silentLogger });
  const consuming = runConsumer(definition, { source: broker.source(), sweepEveryMs: 50 });
  const stop = async (): Promise<void> => {
    await turnout.close();
    await consuming.stop();
    await relay.stop();
    await to.close();
  };
  onTestFinished(stop);
  await relay.start();
  await consuming.start();
  let step = 0;
  return {
    from,
    to,
    email,
    broker,
    state,
    consuming,
    relay,
    view: () => ({
      broker: broker.source(),
      evidence: (question: object) => consumerEvidence(to.database, 'email', question),
    }),
    async publish(count: number, orderId = 'a') {
      for (let index = 0; index < count; index++)
        await turnout.transaction((tx) =>
          turnout.publish(tx, OrderPlaced, { orderId: `${orderId}${index}`, step: ++step }),
        );
    },
    stage: async () =>
      (await from.pool.query<{ stage: string }>('select stage from turnout.switchover')).rows[0]!.stage,
    force: (stage: string) =>
      setStage(from.database, 'orders', email.name, stage, {
        reason: 'an operator knows',
        force: true,
        ...(stage === 'ramp' ? { percent: 50 } : {}),
      }),
  };
}

type World = Awaited<ReturnType<typeof world>>;

async function watching(the: World, more: Partial<Parameters<typeof guardrails>[0]> = {}) {
  const service = guardrails({
    source: 'orders',
    database: the.from.database,
    switchovers: [the.email],
    view: the.view,
    everyMs: 50,
    ...more,
  });
  onTestFinished(() => service.stop());
  await service.start();
  return service;
}

describe('guardrails', () => {
  test('a handler that parks sends the switchover back by itself, once, recorded with the numbers; a webhook tells', async () => {
    const the = await world();
    const hook = await receiver([503]);
    const logger = memoryLogger();
    const onAlert = webhook(hook.url, { retry: { firstDelayMs: 1, maxDelayMs: 5 }, logger });
    await the.force('event');
    // Three processes watch.
    await watching(the, { onAlert });
    await watching(the, { onAlert });
    const service = await watching(the, { onAlert });
    await the.publish(20);
    await waitFor(async () => (await the.to.effects()).length === 20, { what: 'the effects' });
    await waitFor(() => service.seen().get('order-email')?.verdict === 'fine', { what: 'all to be fine' });
    expect(await the.stage()).toBe('event');

    the.state.broken = true;
    await the.publish(3, 'b');
    await waitFor(async () => (await the.stage()) === 'rpc', { what: 'the step back', deadlineMs: 20_000 });
    await waitFor(() => hook.alerts.length > 0, { what: 'the webhook' });
    const history = await switchoverHistory(the.from.database, 'orders', 'order-email');
    const { rows } = await the.from.pool.query(
      'select to_stage, automatic, reason, detail from turnout.switchover_history order by id desc limit 1',
    );
    expect(history.map(({ to }) => to)).toEqual(['rpc', 'event', 'rpc']);
    expect(rows[0]).toMatchObject({
      automatic: true,
      detail: { guardrail: { from: 'event', breaches: [{ rule: 'failed', limit: 1 }] } },
    });
    expect(rows[0].reason).toContain('3 of 23 events are parked or dead');
    expect(hook.alerts).toMatchObject([
      { kind: 'stepped-back', switchover: 'order-email', consumer: 'email', stage: 'event', to: 'rpc', epoch: 2 },
    ]);
    expect(logger.lines.map(({ message }) => message)).toContain('An alert was not received; it is sent again.');

    // An operator knows better: what is parked already is not counted again.
    the.state.broken = false;
    await the.force('event');
    await the.publish(5, 'c');
    await waitFor(() => service.seen().get('order-email')?.verdict === 'fine', { what: 'all to be fine again' });
    expect(await the.stage()).toBe('event');
    expect(hook.alerts).toHaveLength(1);
  });

  test('a consumer that is gone, and one that reads nothing, are breaches; in shadow they are only told', async () => {
    const alerts: Alert[] = [];
    const the = await world({ maxDownMs: 200, to: 'shadow' });
    await the.force('ramp');
    await the.consuming.stop();
    const service = await watching(the, { onAlert: (alert) => void alerts.push(alert) });
    await waitFor(async () => (await the.stage()) === 'shadow', { what: 'the step back', deadlineMs: 20_000 });
    await waitFor(() => alerts.length === 2, { what: 'the alert of shadow' });
    expect(alerts).toMatchObject([
      { kind: 'stepped-back', stage: 'ramp', to: 'shadow', breaches: [{ rule: 'down' }] },
      { kind: 'breached', stage: 'shadow', breaches: [{ rule: 'down' }] },
    ]);
    expect(await the.stage()).toBe('shadow');
    expect(service.seen().get('order-email')?.verdict).toBe('breached');
  });

  test('a stage that an operator has set meanwhile is not sent back for what was seen before', async () => {
    const the = await world();
    await the.force('event');
    let asked = 0;
    const held = evidenceHeldUp(the, () => ++asked);
    await watching(the, { view: () => ({ ...the.view(), evidence: held.evidence }), everyMs: 20 });
    await waitFor(() => asked > 0, { what: 'the question' });
    await the.force('rpc');
    await the.force('event');
    held.release();
    await waitFor(() => asked > 2, { what: 'later looks' });
    expect(await the.stage()).toBe('event');
  });

  /** Evidence full of failures for the first one who asks, and as it is for the others. */
  function evidenceHeldUp(the: World, count: () => number) {
    let release: () => void = () => undefined;
    const wait = new Promise<void>((resolve) => (release = resolve));
    return {
      release: () => release(),
      evidence: async (question: { withinMs?: number }) => {
        const real = await consumerEvidence(the.to.database, 'email', question);
        if (count() > 1) return real;
        await wait;
        return { ...real, parked: 50, parkedWithin: 50 };
      },
    };
  }

  test('evidence that can’t be read is told, and sends nothing back; it may hang, or fail', async () => {
    const alerts: Alert[] = [];
    const the = await world({ blindAfter: 2 });
    await the.force('event');
    let sighted = false;
    let tries = 0;
    await watching(the, {
      onAlert: (alert) => void alerts.push(alert),
      evidenceTimeoutMs: 20,
      view: () => ({
        evidence: async (question) => {
          if (sighted) return consumerEvidence(the.to.database, 'email', question);
          return tries++ % 2 === 0 ? new Promise(() => undefined) : Promise.reject(new Error('no route'));
        },
      }),
    });
    await waitFor(() => alerts.length === 1, { what: 'the alert' });
    expect(alerts[0]).toMatchObject({ kind: 'blind', stage: 'event' });
    expect(await the.stage()).toBe('event');
    sighted = true;
    await waitFor(() => alerts.length === 2, { what: 'the second alert' });
    expect(alerts[1]).toMatchObject({ kind: 'sighted' });
  });
});

describe('unreadMs', () => {
  test('is the age of the oldest event that was published and not read', async () => {
    const the = await world();
    await the.force('event');
    const age = async () => {
      const { consumed } = await consumerEvidence(the.to.database, 'email');
      return unreadMs(the.from.database, 'orders', 'orders', consumed);
    };
    expect(await age()).toBeUndefined();
    await the.publish(9);
    await waitFor(async () => (await the.to.effects()).length === 9, { what: 'the effects' });
    await waitFor(async () => (await age()) === 0, { what: 'nothing to be unread' });
    await the.consuming.stop();
    await the.publish(9);
    await waitFor(async () => ((await age()) ?? 0) > 100, { what: 'unread events' });
    const first = (await age())!;
    await the.publish(3);
    expect((await age())!).toBeGreaterThanOrEqual(first);
    await the.consuming.start();
    await waitFor(async () => (await the.to.effects()).length === 21, { what: 'the effects' });
    await waitFor(async () => (await age()) === 0, { what: 'nothing to be unread' });
  });
});

describe('checkSwitchover', () => {
  const verdictOf = ({ findings }: SwitchoverCheck, check: string) =>
    findings.find((each) => each.check === check)?.verdict;

  test('looks at producer, broker and consumer, records what it said, and the stage goes by it', async () => {
    const the = await world();
    const look = (target: 'shadow' | 'event' | 'ramp', more: object = the.view()) =>
      checkSwitchover({ source: 'orders', database: the.from.database, name: 'order-email', target, ...more });
    const set = (stage: string) => setStage(the.from.database, 'orders', 'order-email', stage, { reason: 'checked' });
    await expect(set('shadow')).rejects.toMatchObject({ code: 'TURNOUT_CHECKS_MISSING' });
    expect(await look('shadow')).toMatchObject({ verdict: 'ready', stage: 'rpc', epoch: 1 });
    await set('shadow');
    // Nothing was delivered yet.
    const early = await look('event');
    expect([early.verdict, verdictOf(early, 'deliveries')]).toEqual(['inconclusive', 'inconclusive']);
    await expect(set('event')).rejects.toMatchObject({ code: 'TURNOUT_CHECKS_NOT_READY' });
    // Without broker and evidence nothing is known.
    const blind = await look('event', {});
    expect(blind.findings.filter(({ verdict }) => verdict === 'inconclusive').map(({ check }) => check)).toEqual([
      'consumer-running',
      'consumer-caught-up',
      'deliveries',
      'parked',
    ]);
    await the.consuming.stop();
    const down = await look('shadow');
    expect([down.verdict, verdictOf(down, 'consumer-running')]).toEqual(['not-ready', 'not-ready']);
    await expect(look('event', { name: 'nobody' })).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_UNKNOWN' });
  });
});

describe('webhook', () => {
  const alert: Alert = {
    id: 'orders/order-email/2/blind',
    kind: 'blind',
    source: 'orders',
    switchover: 'order-email',
    consumer: 'email',
    stage: 'event',
    epoch: 2,
    at: new Date(0).toISOString(),
    why: 'a test',
    breaches: [],
  };
  const retry = { attempts: 3, firstDelayMs: 1, maxDelayMs: 2 };

  test('is made again after 5xx, 429 and a receiver that hangs; gives up on other 4xx at once', async () => {
    const patient = await receiver([500, 429, 0]);
    await webhook(patient.url, { retry: { ...retry, attempts: 4 }, timeoutMs: 1_000 })(alert);
    expect(patient.alerts).toEqual([alert]);

    const logger = memoryLogger();
    const refusing = await receiver([404, 204]);
    await webhook(refusing.url, { retry, logger })(alert);
    expect([refusing.alerts, refusing.left()]).toEqual([[], 1]);
    expect(logger.lines).toMatchObject([{ level: 'error', fields: { problem: 'it answered 404', attempt: 1 } }]);
  });

  test('never rejects when nobody is there', async () => {
    const logger = memoryLogger();
    await webhook(`http://127.0.0.1:9/${uniqueName('hook')}`, { retry, logger })(alert);
    expect(logger.lines.at(-1)).toMatchObject({ level: 'error', fields: { attempt: 3 } });
  });
});
