import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { allowedSources, findSource, type Finding } from './choice.ts';
import { freePort } from './free-port.ts';
import { cachedKafkaJars, kafkaJars, kafkaVersion } from './kafka-jars.ts';
import { findProgram, lookAtDocker, lookAtEnvironment, outputOf } from './look.ts';
import { notOurs, progressTo, type Part, type PartOptions } from './part.ts';
import { privateServer, startOnFreePorts } from './private-server.ts';

export interface Kafka extends Part {
  /** Bootstrap addresses, as kafkajs takes them. */
  readonly brokers: readonly string[];
}

export interface KafkaOptions extends PartOptions {
  /** The broker's heap. Default `512m`. */
  readonly heap?: string;
  /** More broker settings, for instance `{ 'message.max.bytes': '2097152' }`. */
  readonly settings?: Readonly<Record<string, string>>;
}

const image = `apache/kafka:${kafkaVersion}`;

/**
 * Starts a private Apache Kafka (one KRaft node, topics are not created by use), or names the brokers of
 * `TURNOUT_KAFKA_BROKERS`.
 *
 * @example
 * const kafka = await startKafka();
 * const client = new Kafka({ brokers: [...kafka.brokers] });
 * …
 * await kafka.stop();
 */
export async function startKafka(options: KafkaOptions = {}): Promise<Kafka> {
  const progress = progressTo(options.onProgress);
  try {
    const allowed = allowedSources(['environment', 'docker', 'local'], {
      environment: process.env['TURNOUT_PARTS'],
      restartable: options.restartable,
    });
    const source = await findSource(
      'Apache Kafka',
      {
        environment: () => lookAtEnvironment('TURNOUT_KAFKA_BROKERS', '127.0.0.1:9092'),
        docker: lookAtDocker,
        local: lookForJava,
      },
      allowed,
    );
    switch (source) {
      case 'environment':
        return fromEnvironment(process.env['TURNOUT_KAFKA_BROKERS'] ?? '');
      case 'docker':
        return await fromDocker(options, progress.report);
      default:
        return await fromJars(options, progress.report);
    }
  } finally {
    progress.done();
  }
}

/** What every single-node broker for tests has, wherever it runs. */
function brokerSettings(options: KafkaOptions): Record<string, string> {
  return {
    'auto.create.topics.enable': 'false',
    'offsets.topic.replication.factor': '1',
    // Fifty partitions to create and load at the first join is what makes a fresh broker seem slow.
    'offsets.topic.num.partitions': '4',
    'transaction.state.log.replication.factor': '1',
    'transaction.state.log.min.isr': '1',
    'transaction.state.log.num.partitions': '4',
    'share.coordinator.state.topic.replication.factor': '1',
    'share.coordinator.state.topic.min.isr': '1',
    'group.initial.rebalance.delay.ms': '0',
    // Half a second of liveness is what lets a test wait for a killed consumer's partitions.
    'group.min.session.timeout.ms': '500',
    // A killed broker's registration must lapse before the next start is let in: nine seconds by default.
    'broker.session.timeout.ms': '3000',
    'broker.heartbeat.interval.ms': '500',
    'log.cleaner.dedupe.buffer.size': '4194304',
    ...options.settings,
  };
}

function fromEnvironment(addresses: string): Kafka {
  return {
    name: 'Apache Kafka',
    version: 'unknown',
    source: 'environment',
    brokers: addresses.split(',').map((address) => address.trim()),
    stop: () => Promise.resolve(),
    ...notOurs('Apache Kafka', 'environment'),
  };
}

async function fromDocker(options: KafkaOptions, report: (message: string) => void): Promise<Kafka> {
  report(`Starting Apache Kafka in Docker (${image})`);
  const { GenericContainer, Wait } = await import('testcontainers');
  // Clients come back to the advertised address, so the outer port has to be known before the broker starts.
  const port = await freePort();
  const settings = {
    'node.id': '1',
    'process.roles': 'broker,controller',
    listeners: 'CLIENTS://:9092,CONTROLLER://:9093',
    'advertised.listeners': `CLIENTS://127.0.0.1:${port}`,
    'listener.security.protocol.map': 'CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT',
    'inter.broker.listener.name': 'CLIENTS',
    'controller.listener.names': 'CONTROLLER',
    'controller.quorum.voters': '1@localhost:9093',
    ...brokerSettings(options),
  };
  const environment = Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [`KAFKA_${name.replaceAll('.', '_').toUpperCase()}`, value]),
  );
  const container = await new GenericContainer(image)
    .withEnvironment({ ...environment, KAFKA_HEAP_OPTS: `-Xmx${options.heap ?? '512m'}` })
    .withExposedPorts({ container: 9092, host: port })
    .withWaitStrategy(Wait.forLogMessage(/Kafka Server started/))
    .start();
  return {
    name: 'Apache Kafka',
    version: kafkaVersion,
    source: 'docker',
    brokers: [`127.0.0.1:${port}`],
    stop: async () => void (await container.stop()),
    ...notOurs('Apache Kafka', 'docker'),
  };
}

async function fromJars(options: KafkaOptions, report: (message: string) => void): Promise<Kafka> {
  const java = findJava();
  if (!java) throw new Error('Java was there a moment ago.');
  const jars = await kafkaJars(findProgram('mvn'), report);
  const { server, started } = await startOnFreePorts(
    () => privateServer('Apache Kafka'),
    async (server) => {
      const [clients, controller] = [await freePort(), await freePort()];
      const config = join(server.directory, 'server.properties');
      const settings = {
        'node.id': '1',
        'process.roles': 'broker,controller',
        listeners: `CLIENTS://127.0.0.1:${clients},CONTROLLER://127.0.0.1:${controller}`,
        'advertised.listeners': `CLIENTS://127.0.0.1:${clients}`,
        'listener.security.protocol.map': 'CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT',
        'inter.broker.listener.name': 'CLIENTS',
        'controller.listener.names': 'CONTROLLER',
        'controller.quorum.voters': `1@127.0.0.1:${controller}`,
        'log.dirs': join(server.directory, 'data'),
        ...brokerSettings(options),
      };
      writeFileSync(
        config,
        Object.entries(settings)
          .map(([name, value]) => `${name}=${value}\n`)
          .join(''),
      );
      const logging = join(server.directory, 'log4j2.properties');
      writeFileSync(logging, logToStandardOutput);
      const java17 = ['-cp', join(jars, '*'), `-Dlog4j2.configurationFile=${logging}`, '-Djava.awt.headless=true'];
      report(`Formatting Apache Kafka's storage`);
      // One that begins with a dash would be read as an option.
      const clusterId = randomBytes(16).toString('base64url').replace(/^-/, 'A');
      await server.run(java, [
        ...java17,
        '-XX:TieredStopAtLevel=1',
        'kafka.tools.StorageTool',
        'format',
        '-t',
        clusterId,
        '-c',
        config,
      ]);
      report(`Starting Apache Kafka ${kafkaVersion} on port ${clients}`);
      await server.start({
        program: java,
        args: [...java17, `-Xmx${options.heap ?? '512m'}`, 'kafka.Kafka', config],
        readyLine: /Kafka Server started/,
        readyDeadlineMs: 90_000,
        shutdownSignal: 'SIGTERM',
        discardSignal: 'SIGKILL',
      });
      return [`127.0.0.1:${clients}`];
    },
  );
  return {
    name: 'Apache Kafka',
    version: kafkaVersion,
    source: 'local',
    brokers: started,
    logFile: server.logFile,
    get pid() {
      return server.pid;
    },
    stop: server.stop,
    kill: server.kill,
    restart: server.restart,
  };
}

const logToStandardOutput = `
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
`;

async function lookForJava(): Promise<Finding> {
  const remedy =
    'install Java 17 or later and Maven (apt-get install openjdk-17-jre-headless maven, brew install openjdk maven)';
  const java = findJava();
  if (!java) return { usable: false, missing: 'no java on PATH, and JAVA_HOME names none', remedy };
  const version = Number(/version "(\d+)/.exec(await outputOf(java, ['-version']))?.[1]);
  if (!(version >= 17)) return { usable: false, missing: `${java} is Java ${version}, 17 is needed`, remedy };
  if (!cachedKafkaJars() && !findProgram('mvn'))
    return { usable: false, missing: 'no mvn on PATH to fetch Apache Kafka', remedy };
  return { usable: true };
}

function findJava(): string | undefined {
  const home = process.env['JAVA_HOME'];
  return findProgram('java', home ? [join(home, 'bin')] : []);
}
