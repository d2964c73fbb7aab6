import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheDirectory } from './cache.ts';

const run = promisify(execFile);

export const kafkaVersion = '4.4.0';

/** The broker's own dependencies, and a back end for its slf4j; log4j-core comes with the broker. */
const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>turnout</groupId>
  <artifactId>kafka-broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>${kafkaVersion}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.5</version></dependency>
  </dependencies>
</project>
`;

/** The folder of Apache Kafka's jars, if they were fetched already. */
export function cachedKafkaJars(): string | undefined {
  const jars = join(cacheDirectory(`kafka-${kafkaVersion}`), 'lib');
  return existsSync(jars) ? jars : undefined;
}

/** The folder of Apache Kafka's jars; the first time Maven fetches them (about 45 MB). Several processes may try at once. */
export async function kafkaJars(maven: string | undefined, report: (message: string) => void): Promise<string> {
  const cached = cachedKafkaJars();
  if (cached) return cached;
  if (!maven) throw new Error('Maven was there a moment ago.');
  report(`Fetching Apache Kafka ${kafkaVersion} with Maven (about 45 MB, once)`);
  const home = cacheDirectory(`kafka-${kafkaVersion}`);
  const partial = mkdtempSync(join(home, 'partial-'));
  try {
    writeFileSync(join(partial, 'pom.xml'), pom);
    const args = [
      '-B',
      '-q',
      'dependency:copy-dependencies',
      '-DincludeScope=runtime',
      `-DoutputDirectory=${join(partial, 'lib')}`,
    ];
    await run(maven, args, { cwd: partial, maxBuffer: 16 * 1024 * 1024 }).catch((cause: unknown) => {
      const said = (cause as { stdout?: string }).stdout?.trim().split('\n').slice(0, 10).join('\n  ');
      throw new Error(
        `Maven could not fetch Apache Kafka ${kafkaVersion}: check the network and Maven's settings.xml.\n  ${said}`,
        { cause },
      );
    });
    try {
      renameSync(join(partial, 'lib'), join(home, 'lib'));
    } catch (error) {
      // Another process was faster: its jars are the same.
      if (!cachedKafkaJars()) throw error;
    }
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  return join(home, 'lib');
}
