/** A fenced block of a page. */
export interface Block {
  /** The number of its first line in the page, counted from 1. */
  readonly at: number;
  readonly lines: readonly string[];
}

/** The fenced blocks of one language. */
export function blocksOf(page: string, language: string): Block[] {
  const blocks: Block[] = [];
  let open: { at: number; lines: string[]; wanted: boolean } | undefined;
  for (const [index, line] of page.split('\n').entries()) {
    const fence = /^\s*```(\S*)/.exec(line);
    if (fence === null) open?.lines.push(line);
    else if (open === undefined) open = { at: index + 2, lines: [], wanted: fence[1] === language };
    else {
      if (open.wanted) blocks.push({ at: open.at, lines: open.lines });
      open = undefined;
    }
  }
  return blocks;
}

/**
 * Files that the blocks of a page make, each block on the lines that it has in the page. One that begins with `// name.ts` is
 * that file. The others go on with what stands before them on the page, as a reader takes them; one that declares again
 * what was declared begins anew.
 */
export function programsOf(blocks: readonly Block[]): Map<string, string> {
  const files = new Map<string, string>();
  let running: { declared: Set<string>; lines: string[] } | undefined;
  let count = 0;
  const finish = (): void => {
    if (running !== undefined) files.set(`block-${++count}.ts`, asModule(running.lines));
  };
  for (const block of blocks) {
    const name = /^\/\/ ([\w./-]+\.ts)$/.exec(block.lines[0] ?? '')?.[1];
    if (name !== undefined) {
      files.set(name, asModule(placed([], block)));
      continue;
    }
    const declared = declaredIn(block.lines.join('\n'));
    if (running === undefined || declared.some((each) => running?.declared.has(each))) {
      finish();
      running = { declared: new Set(), lines: [] };
    }
    for (const each of declared) running.declared.add(each);
    running.lines = placed(running.lines, block);
  }
  finish();
  return files;
}

function placed(before: readonly string[], block: Block): string[] {
  return [...before, ...Array.from({ length: block.at - 1 - before.length }, () => ''), ...block.lines];
}

function asModule(lines: readonly string[]): string {
  return `${lines.join('\n')}\nexport {};\n`;
}

/** Names that a block imports or declares at its top level. */
function declaredIn(text: string): string[] {
  const names: string[] = [];
  for (const [, list = ''] of text.matchAll(/^import (?:type )?([^;]+?) from /gm)) {
    for (const part of list.replaceAll(/[{}]/g, ',').split(',')) {
      const name = part
        .trim()
        .replace(/^type /, '')
        .split(' as ')
        .at(-1)
        ?.trim();
      if (name !== undefined && name !== '') names.push(name);
    }
  }
  for (const [, name = ''] of text.matchAll(
    /^(?:export )?(?:async )?(?:const|let|function|class|interface|type) (\w+)/gm,
  ))
    names.push(name);
  return names;
}

/** Targets of links within the repository, without their anchors. */
export function linksOf(page: string): string[] {
  const prose = page.replaceAll(/^\s*```[\s\S]*?^\s*```/gm, '').replaceAll(/`[^`\n]*`/g, '');
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = '']) => target.replace(/#.*$/, ''))
    .filter((target) => target !== '' && !/^[a-z]+:/.test(target));
}
