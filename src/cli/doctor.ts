import { createRequire } from 'node:module';
import { totalmem } from 'node:os';
import { type CudaInfo, findCudaLibrary, loadBinding } from '../binding.js';
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
  /** What was found for the GPU backend, or null where its library is missing. */
  readonly cuda: (CudaInfo & { readonly library: string }) | null;
  readonly dataFiles: string;
  /** Of the container, where one sets a limit. */
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number };
}

/** `limbeck doctor`: what this machine offers, and what is missing. Returns whether the addon works. */
export function doctorCommand(flags: { readonly json?: boolean }, { streams }: CommandContext): boolean {
  const diagnosis = diagnose();
  const { version, node, platform, addonError, cpu, backends, cuda, dataFiles, memory } = diagnosis;
  print(streams, flags.json ?? false, diagnosis, () =>
    [
      `limbeck     ${version}, Node ${node}, ${platform}`,
      `addon       ${addonError ?? 'found'}`,
      ...(cpu ? [`processor   ${cpu.isa} in use; has ${cpu.features.join(', ')}`, `threads     ${cpu.threads}`] : []),
      `backends    cpu: ${backends.cpu}; cuda: ${backends.cuda}`,
      ...(cuda ? cudaLines(cuda) : []),
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
  const gpus = addonError === null ? diagnoseCuda() : { state: 'the addon does not load', cuda: null };
  return {
    version: packageVersion(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    addonError,
    cpu,
    backends: { cpu: addonError === null ? 'ready' : 'the addon does not load', cuda: gpus.state },
    cuda: gpus.cuda,
    dataFiles: hasDuckDB() ? 'ready (@duckdb/node-api)' : 'not installed: npm install @duckdb/node-api',
    memory: { totalBytes: memoryLimit(), availableBytes: process.availableMemory() },
  };
}

/** `state`: ready, or the one thing that is missing first. */
function diagnoseCuda(): { state: string; cuda: Diagnosis['cuda'] } {
  try {
    const library = findCudaLibrary();
    const cuda = { library, ...loadBinding().cudaInfo(library) };
    const usable = cuda.devices.filter(({ problem }) => problem === '').length;
    if (cuda.problem !== '') return { state: cuda.problem, cuda };
    if (usable > 0) return { state: usable === 1 ? 'ready' : `ready, ${usable} GPUs`, cuda };
    return { state: 'no GPU here can be used', cuda };
  } catch (error) {
    return { state: error instanceof Error ? error.message : String(error), cuda: null };
  }
}

function cudaLines({
  library,
  runtimeVersion,
  driverVersion,
  cublas,
  devices,
}: CudaInfo & { library: string }): string[] {
  const driver = driverVersion === 0 ? 'no driver' : `driver for CUDA ${versionOf(driverVersion)}`;
  return [
    `cuda        ${library}, CUDA ${versionOf(runtimeVersion)}, ${driver}, ${cublas === '' ? 'no cuBLASLt' : cublas}`,
    ...devices.map(
      ({ name, capability, freeBytes, totalBytes, problem }, index) =>
        `${`gpu ${index}`.padEnd(11)} ${[
          ...(name === '' ? [] : [name, `capability ${capability}`]),
          ...(totalBytes === 0 ? [] : [`${gibibytes(freeBytes)} GiB free of ${gibibytes(totalBytes)} GiB`]),
          ...(problem === '' ? [] : [`cannot be used: ${problem}`]),
        ].join(', ')}`,
    ),
  ];
}

/** 12080 → 12.8 */
function versionOf(number: number): string {
  return `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`;
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
