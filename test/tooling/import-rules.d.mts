export const layers: Readonly<Record<string, readonly string[]>>;
export const packagesOfAdapter: Readonly<Record<string, readonly string[]>>;
export function whyNot(file: string, specifier: string): string | undefined;
