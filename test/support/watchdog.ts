/**
 * Ends a worker of Vitest whose thread hangs, in native code or in a program that it waits for, and names the test. Vitest
 * cannot: its limits are timers of that thread.
 */
import { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, expect } from 'vitest';

/** Beyond the limit of a test: its hooks, and what Vitest takes to end it by itself. */
const GRACE_MS = 180_000;
/** For what is between tests: imports, and hooks that Vitest limits. */
const BETWEEN_MS = 300_000;

const PROGRAM = `
  const { writeSync } = require('node:fs');
  let timer;
  require('node:worker_threads').parentPort.on('message', ({ what, limitMs }) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      writeSync(2, '\\nHANGS: ' + what + ', for ' + limitMs / 1000 + ' s; its process is killed\\n');
      process.kill(process.pid, 'SIGKILL');
    }, limitMs);
  });`;

const watchdog = new Worker(PROGRAM, { eval: true });
watchdog.unref();
const watch = (what: string, limitMs: number) => watchdog.postMessage({ what, limitMs });

const file = expect.getState().testPath ?? 'a test file';
watch(`${file}, before its first test`, BETWEEN_MS);
beforeEach(({ task }) => watch(`${file} > ${task.fullTestName}`, task.timeout + GRACE_MS));
afterEach(({ task }) => watch(`${file}, after '${task.fullTestName}'`, BETWEEN_MS));
