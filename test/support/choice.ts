/** Where a part came from. */
export type PartSource = 'environment' | 'docker' | 'local' | 'embedded';

/** The order in which sources are tried. */
const partSources: readonly PartSource[] = ['environment', 'docker', 'local', 'embedded'];

/** What was found when a source was looked at: usable, or what is missing and how to get it. */
export type Finding =
  | { readonly usable: true }
  | { readonly usable: false; readonly missing: string; readonly remedy: string };

/** Findings by source; a source that was not looked at, or that a part doesn't have, is absent. */
export type Findings = Partial<Record<PartSource, Finding>>;

/** The first usable source, in the order of {@link partSources}. */
export function chooseSource(findings: Findings): PartSource | undefined {
  return partSources.find((source) => findings[source]?.usable);
}

/** No source serves: one message that names what is missing and every way to get it. */
export class PartMissingError extends Error {
  override readonly name = 'PartMissingError';
  readonly part: string;
  readonly findings: Findings;

  constructor(part: string, findings: Findings) {
    super(describeMissing(part, findings));
    this.part = part;
    this.findings = findings;
  }
}

function describeMissing(part: string, findings: Findings): string {
  const looked = partSources.flatMap((source) => {
    const finding = findings[source];
    return finding && !finding.usable ? [`  ${source}: ${finding.missing}`] : [];
  });
  const ways = partSources.flatMap((source) => {
    const finding = findings[source];
    return finding && !finding.usable ? [`  - ${finding.remedy}`] : [];
  });
  return [`${part} can't be started here. Looked for:`, ...looked, 'Any one of these helps:', ...ways].join('\n');
}

/**
 * The sources to consider: all that the part has, or fewer: `TURNOUT_PARTS` (for instance `local,embedded`) leaves out
 * others, and a part that a test restarts or kills must be a process of our own.
 */
export function allowedSources(
  available: readonly PartSource[],
  wish: { readonly environment?: string | undefined; readonly restartable?: boolean | undefined },
): readonly PartSource[] {
  const named = wish.environment
    ?.split(',')
    .map((word) => word.trim())
    .filter((word) => word !== '');
  const unknown = named?.filter((word) => !partSources.some((source) => source === word)) ?? [];
  if (unknown.length > 0) {
    throw new Error(`TURNOUT_PARTS names ${unknown.join(', ')}: use ${partSources.join(', ')}, separated by commas.`);
  }
  return available
    .filter((source) => named === undefined || named.length === 0 || named.includes(source))
    .filter((source) => !wish.restartable || source === 'local' || source === 'embedded');
}

/** Looks at one source after another, in order, and no further than the first that serves. */
export async function findSource<Looks extends Partial<Record<PartSource, () => Finding | Promise<Finding>>>>(
  part: string,
  looks: Looks,
  allowed: readonly PartSource[],
): Promise<PartSource> {
  const findings: Findings = {};
  for (const source of partSources) {
    const look = looks[source];
    if (!look || !allowed.includes(source)) continue;
    findings[source] = await look();
    const chosen = chooseSource(findings);
    if (chosen) return chosen;
  }
  throw new PartMissingError(part, findings);
}
