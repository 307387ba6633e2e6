/** A real Chromium, from Debian's package. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type BrowserContext, chromium } from 'playwright-core';

const EXECUTABLE = process.env['CHROMIUM'] ?? '/usr/bin/chromium';

/** Why tests in a browser cannot run; undefined when they can. */
export const chromiumIsMissing = existsSync(EXECUTABLE)
  ? undefined
  : `${EXECUTABLE} is not there (apt-get install chromium, or name another one in CHROMIUM)`;

/** Starts it with an empty profile. @returns its context, and what ends it */
export async function startChromium(): Promise<{ context: BrowserContext; stop: () => Promise<void> }> {
  const profile = mkdtempSync(join(tmpdir(), 'limbeck-chromium-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: EXECUTABLE,
    headless: true,
    // No sandbox: tests run as root in containers, and the pages are our own. The rest keeps Chromium off the network.
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
    viewport: { width: 1280, height: 900 },
  });
  return {
    context,
    async stop() {
      await context.close();
      rmSync(profile, { recursive: true, force: true });
    },
  };
}
