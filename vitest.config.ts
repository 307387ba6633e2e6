import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    // A native addon is loaded once per process; worker threads of one process would share its fate.
    pool: 'forks',
    include: ['test/unit/**/*.test.ts', 'test/e2e/**/*.test.ts'],
    setupFiles: 'test/support/watchdog.ts',
    // Limits are there to end what hangs, also on a machine that does other things.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 20_000 } },
  },
});
