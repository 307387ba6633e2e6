import { createRequire } from 'node:module';
import { totalmem } from 'node:os';
import { loadBinding } from '../binding.js';
import { type CommandContext, print } from './output.js';

/** The package's own version. */
export function packageVersion(): string {
  const manifest: { version: string } = createRequire(import.meta.url)('../../package.json');
  return manifest.version;
}

interface Diagnosis {
  readonly version: string;
  readonly node: string;
  readonly platform: string;
  /** What is wrong with the addon, or null. */
  readonly addonError: string | null;
  readonly cpu: { readonly features: readonly string[]; readonly isa: string; readonly threads: number } | null;
  readonly backends: { readonly cpu: string; readonly cuda: string };
  readonly dataFiles: string;
  /** Of the container, where one sets a limit. */
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number };
}

/** `limbeck doctor`: what this machine offers, and what is missing. Returns whether the addon works. */
export function doctorCommand(flags: { readonly json?: boolean }, { streams }: CommandContext): boolean {
  const diagnosis = diagnose();
  const { version, node, platform, addonError, cpu, backends, dataFiles, memory } = diagnosis;
  print(streams, flags.json ?? false, diagnosis, () =>
    [
      `limbeck     ${version}, Node ${node}, ${platform}`,
      `addon       ${addonError ?? 'found'}`,
      ...(cpu ? [`processor   ${cpu.isa} in use; has ${cpu.features.join(', ')}`, `threads     ${cpu.threads}`] : []),
      `backends    cpu: ${backends.cpu}; cuda: ${backends.cuda}`,
      `data files  ${dataFiles}`,
      `memory      ${gibibytes(memory.availableBytes)} GiB available of ${gibibytes(memory.totalBytes)} GiB`,
    ].join('\n'),
  );
  return addonError === null;
}

function diagnose(): Diagnosis {
  let addonError: string | null = null;
  let cpu: Diagnosis['cpu'] = null;
  try {
    const { features, isa, availableThreads } = loadBinding().cpuInfo();
    cpu = { features, isa, threads: availableThreads };
  } catch (error) {
    addonError = error instanceof Error ? error.message : String(error);
  }
  return {
    version: packageVersion(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    addonError,
    cpu,
    backends: { cpu: addonError === null ? 'ready' : 'the addon does not load', cuda: 'not part of this version' },
    dataFiles: hasDuckDB() ? 'ready (@duckdb/node-api)' : 'not installed: npm install @duckdb/node-api',
    memory: { totalBytes: memoryLimit(), availableBytes: process.availableMemory() },
  };
}

/** The machine's memory, or less where a container may have less; without a limit Node reports 0 or a huge number. */
function memoryLimit(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

function hasDuckDB(): boolean {
  try {
    createRequire(import.meta.url).resolve('@duckdb/node-api');
    return true;
  } catch {
    // Not installed is the answer, not a failure.
    return false;
  }
}

function gibibytes(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(1);
}
