import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    // A native addon is loaded once per process; worker threads of one process would share its fate.
    pool: 'forks',
    include: ['test/unit/**/*.test.ts', 'test/e2e/**/*.test.ts'],
    testTimeout: 60_000,
  },
});
