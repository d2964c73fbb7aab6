import { describe, expect, test } from 'vitest';
import { allowedSources, chooseSource, findSource, PartMissingError, type Finding } from '../support/choice.ts';

const usable: Finding = { usable: true };
const without = (missing: string, remedy: string): Finding => ({ usable: false, missing, remedy });
const docker = without('no Docker engine answers', 'start Docker');
const local = without('no java on PATH', 'install Java 17');

describe('the choice of a source', () => {
  test('follows environment, Docker, local, embedded', () => {
    expect(chooseSource({ embedded: usable, local: usable, docker: usable, environment: usable })).toBe('environment');
    expect(chooseSource({ embedded: usable, local: usable, docker: usable })).toBe('docker');
    expect(chooseSource({ embedded: usable, local: usable, docker })).toBe('local');
    expect(chooseSource({ embedded: usable, local, docker })).toBe('embedded');
    expect(chooseSource({ local, docker })).toBeUndefined();
  });

  test('looks no further than the first that serves', async () => {
    const looked: string[] = [];
    const look = (name: string, finding: Finding) => () => {
      looked.push(name);
      return finding;
    };
    const looks = { docker: look('docker', docker), local: look('local', usable), embedded: look('embedded', usable) };
    await expect(findSource('PostgreSQL', looks, ['docker', 'local', 'embedded'])).resolves.toBe('local');
    expect(looked).toEqual(['docker', 'local']);
  });

  test('without any, one message names what is missing and every way to get it', async () => {
    const looks = { docker: () => docker, local: () => local };
    const error = await findSource('Apache Kafka', looks, ['docker', 'local']).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(PartMissingError);
    const { message } = error as PartMissingError;
    for (const word of [
      'Apache Kafka',
      'no Docker engine answers',
      'start Docker',
      'no java on PATH',
      'install Java 17',
    ]) {
      expect(message).toContain(word);
    }
  });
});

describe('the sources that are considered', () => {
  const all = ['environment', 'docker', 'local', 'embedded'] as const;

  test('are all that the part has, unless told otherwise', () => {
    expect(allowedSources(all, {})).toEqual(all);
    expect(allowedSources(all, { environment: '' })).toEqual(all);
    expect(allowedSources(all, { environment: 'embedded, local' })).toEqual(['local', 'embedded']);
  });

  test('are processes of our own when the part is to be restarted', () => {
    expect(allowedSources(all, { restartable: true })).toEqual(['local', 'embedded']);
  });

  test('refuse a word that is none', () => {
    expect(() => allowedSources(all, { environment: 'local,podman' })).toThrow('podman');
  });
});
