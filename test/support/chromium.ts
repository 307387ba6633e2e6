/** A real Chromium, from Debian's package. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import axe, { type AxeResults } from 'axe-core';
import { type BrowserContext, chromium, type Page } from 'playwright-core';

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

/** For titles of tests that are skipped without it. */
export const skippedReason = chromiumIsMissing === undefined ? '' : ` (skipped: ${chromiumIsMissing})`;

/** What the page itself must never do: throw, print errors, break its policy, or ask another host. */
export function watch(page: Page, origin: string, allowed: RegExp = /^$/): string[] {
  const complaints: string[] = [];
  page.on('pageerror', (error) => complaints.push(`threw ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error' && !allowed.test(message.text())) complaints.push(message.text());
  });
  page.on('dialog', (dialog) => {
    complaints.push(`dialog ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on('request', (request) => {
    if (!request.url().startsWith(origin)) complaints.push(`asked ${request.url()}`);
  });
  return complaints;
}

/** @returns violations of the WCAG 2.2 A and AA rules and best practices that axe finds */
export async function accessibilityProblems(page: Page): Promise<string[]> {
  // As an expression of the debugger, which the page's policy does not bind.
  await page.evaluate(axe.source);
  const { violations } = (await page.evaluate('axe.run(document)')) as AxeResults;
  return violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join('\n')}`,
  );
}
