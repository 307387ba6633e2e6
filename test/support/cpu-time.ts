/** Bounds on time in tests are bounds on processor time, which hardly grows on a busy machine; time on the clock does. */

/** @returns what tells the processor time of all threads of this process since, in ms */
export function startCpuTime(): () => number {
  const start = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(start);
    return (user + system) / 1000;
  };
}

/** @returns the processor time that `work` took, in ms */
export async function cpuTimeMs(work: () => unknown): Promise<number> {
  const elapsedMs = startCpuTime();
  await work();
  return elapsedMs();
}
