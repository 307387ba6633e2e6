/** The console page in Chromium, over the real service with real students, by mouse and by keyboard alone. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BrowserContext, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createEngine } from '../../src/index.js';
import { createApiKey } from '../../src/server/api-keys.js';
import { accessibilityProblems, chromiumIsMissing, skippedReason, startChromium, watch } from '../support/chromium.js';
import { FIXTURE_STUDENT, startService, type TestService } from '../support/serve.js';

const HISTORY = ['tt0770828', 'tt0816711', 'tt1408101'];
const PAGE = {
  console: join(import.meta.dirname, '../../src/server/console'),
  // A machine that also runs Chromium and other tests is late for every request.
  limits: { maxQueueMs: 10_000 },
};
/** Beside other tests on two cores, all takes its time. */
const WAIT_MS = 60_000;
/** More than the page has tab stops. */
const MAX_TABS = 60;

let chromium: { context: BrowserContext; stop: () => Promise<void> };
let folder: string;
let service: TestService;
let page: Page;
let url: string;
let complaints: string[];

const text = async (selector: string) => (await page.locator(selector).textContent())?.replace(/\s+/g, ' ').trim();
const focused = (selector: string) => page.evaluate(`document.activeElement.matches(${JSON.stringify(selector)})`);
const ids = (list: string) =>
  page.locator(`${list} li`).evaluateAll((rows) => rows.map((row) => row.getAttribute('data-id')));

/** Presses Tab until the focus is there, and sees that it can be seen. */
async function tabTo(selector: string) {
  for (let i = 0; i < MAX_TABS; i++) {
    await page.keyboard.press('Tab');
    if (!(await focused(selector))) continue;
    const outline = await page.evaluate('getComputedStyle(document.activeElement).outlineStyle');
    expect(outline, `outline of ${selector}`).toBe('solid');
    return;
  }
  throw new Error(`Tab does not lead to ${selector}`);
}

async function sendHistory(userId: string) {
  const events = HISTORY.map((itemId) => ({ userId, itemId, type: 'click' }));
  const { status } = await service.call('POST', '/v1/events', { events });
  expect(status).toBe(200);
}

/** Students, one of them broken, and a teacher; the first answers. */
async function makeRegistry(): Promise<string> {
  const engine = await createEngine({ threads: 1 });
  try {
    const registry = await engine.openModelRegistry(join(folder, 'models'));
    const student = await engine.loadStudent(FIXTURE_STUDENT);
    await registry.add('student-1', FIXTURE_STUDENT);
    await registry.add('teacher', FIXTURE_STUDENT);
    student.removeItems(student.items.slice(-8).map(({ id }) => id));
    await registry.add('student-2', student);
    await registry.add('broken', FIXTURE_STUDENT);
    rmSync(join(folder, 'models/versions/broken/model.safetensors'));
    await registry.promote('student-1');
    student.dispose();
    return join(folder, 'models');
  } finally {
    engine.dispose();
  }
}

async function open(path: string) {
  await page.goto(url + path);
  await page.locator('#student-list').locator('li, .empty').first().waitFor();
}

describe.skipIf(chromiumIsMissing !== undefined)(`the console page of the service${skippedReason}`, () => {
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'limbeck-console-'));
    service = await startService({ student: await makeRegistry(), ...PAGE });
    url = await service.listen();
    chromium = await startChromium();
  });
  afterAll(async () => {
    await chromium.stop();
    await service.end();
    rmSync(folder, { recursive: true });
  });
  beforeEach(async () => {
    page = await chromium.context.newPage();
    page.setDefaultTimeout(WAIT_MS);
    complaints = watch(page, url);
  });
  afterEach(async () => {
    await page.close();
    expect(complaints).toEqual([]);
  });

  test('shows a user: history, interests, and what the student recommends and why', async () => {
    await sendHistory('alice');
    await open('/');
    await page.fill('#user-id', 'alice');
    await page.locator('#user-form button').click();
    await page.locator('#history li').nth(2).waitFor();
    expect(await page.locator('#history li').allTextContents()).toEqual([
      'Star Trek Into Darkness. 2013. Action, Adventure, Sci-Fi',
      'World War Z. 2013. Action, Drama, Horror, Sci-Fi, Thriller',
      'Man of Steel. 2013. Action, Adventure, Fantasy, Sci-Fi',
    ]);
    expect(page.url()).toBe(`${url}/?user=alice`);
    expect(await page.locator('#student-list li').count()).toBe(10);
    for (const id of HISTORY) expect(await ids('#student-list')).not.toContain(id);
    expect(await text('#student-latency')).toMatch(/^[\d.]+ (ms|µs)$/);
    await page.locator('#student-list .item').first().click();
    expect(await text('#student-list .reasons')).toMatch(/Star Trek|World War Z|Man of Steel/);
    const { json } = await service.call('POST', '/v1/interests', { userId: 'alice', k: 6 });
    const names = await page.locator('#interests .name').allTextContents();
    expect(names).toEqual(json.interests.map(({ name }: { name: string }) => name));
  });

  test('sends feedback, which the service stores and the list shows', async () => {
    await sendHistory('bob');
    await open('/?user=bob');
    const [first, second] = (await ids('#student-list')) as [string, string];
    await page.locator('#student-list .item').first().click();
    await page.locator('#student-list .toolbar button', { hasText: 'Dismiss' }).click();
    await page.locator('#history summary', { hasText: '1 dismissed' }).waitFor();
    await page.locator('#announcer', { hasText: 'The list changed' }).waitFor();
    expect(await ids('#student-list')).not.toContain(first);
    expect(await page.locator('#student-list .change.new').count()).toBeGreaterThan(0);
    await page.locator(`#student-list li[data-id="${second}"] .item, #student-list .item`).first().click();
    await page.locator('#student-list .toolbar [aria-label="Rate 4 of 5"]').click();
    await page.locator('#history p', { hasText: '4 items' }).waitFor();
    const { json } = await service.call('GET', '/v1/users/bob');
    expect(json.hidden).toEqual([first]);
    expect(json.history).toHaveLength(4);
  });

  test('compares with popularity, and with a model that it loads first', async () => {
    await sendHistory('carol');
    await open('/?user=carol');
    expect(await text('#other-title')).toBe('Teacher');
    await page.locator('#other-list button', { hasText: 'Load teacher' }).click();
    await page.locator('#other-list li').first().waitFor();
    expect(await text('#other-facts')).toContain('teacher');
    await page.selectOption('#compare', { label: 'Popularity' });
    await page.locator('#other-facts', { hasText: 'popular' }).waitFor();
    expect(await text('#other-title')).toBe('Popularity');
  });

  test('searches by text, and for items like one', async () => {
    await open('/');
    await page.fill('#search-text', 'space adventure');
    await page.keyboard.press('Enter');
    await page.locator('#search-list li').first().waitFor();
    const { json } = await service.call('POST', '/v1/search', { text: 'space adventure', k: 10 });
    expect(await ids('#search-list')).toEqual(json.items.map(({ id }: { id: string }) => id));
    await page.locator('#search-list .item').first().click();
    await page.locator('#search-list button', { hasText: 'Similar items' }).click();
    await page.locator('#search-heading', { hasText: 'Like' }).waitFor();
  });

  test('keeps what was searched for while a user is opened, unless it was found by the taste of another', async () => {
    await sendHistory('gina');
    await open('/');
    let opened = () => {};
    const isAsked = new Promise<void>((resolve) => {
      void page.route('**/v1/users/gina', async (route) => {
        resolve();
        await new Promise<void>((go) => (opened = go));
        await route.continue();
      });
    });
    await page.fill('#user-id', 'gina');
    await page.keyboard.press('Enter');
    await isAsked;
    await page.fill('#search-text', 'drama');
    await page.keyboard.press('Enter');
    await page.locator('#search-list li').first().waitFor();
    opened();
    await page.locator('#person-name', { hasText: 'gina' }).waitFor();
    expect(await page.locator('#search-list li').count()).toBe(10);

    await page.check('#search-personal');
    await page.locator('#search-text').press('Enter');
    await page.locator('#search-list li').first().waitFor();
    await page.fill('#user-id', 'hank');
    await page.keyboard.press('Enter');
    await page.locator('#person-name', { hasText: 'hank' }).waitFor();
    await page.locator('#search-list .empty').waitFor();
  });

  test('swaps models: load, promote, roll back; and says why one is refused', async () => {
    await open('/');
    await page.locator('#models-list [aria-label="Promote student-2"]').click();
    await page.locator('#current-model', { hasText: 'student-2' }).waitFor();
    await page.locator('#student-facts', { hasText: 'student-2' }).waitFor();
    await page.locator('#roll-back').click();
    await page.locator('#current-model', { hasText: 'student-1' }).waitFor();
    const { json } = await service.call('GET', '/v1/models');
    expect(json.current).toBe('student-1');
    await page.locator('#models-list [aria-label="Promote broken"]').click();
    await page.locator('#models-state .problem').waitFor();
    // Chromium prints the refusal.
    expect(complaints.splice(0)).toEqual([expect.stringContaining('the server responded with a status of 422')]);
    expect(await text('#models-state')).toContain('refused');
    expect(await text('#current-model')).toBe('student-1');
  });

  test('shows live metrics', async () => {
    await open('/');
    await page.locator('[data-metric=rate] .line').waitFor();
    await page.locator('#refresh').click();
    await page.locator('[data-metric=p99] dd', { hasText: /ms|µs/ }).waitFor();
    expect(await text('#status')).toBe('Ready');
    expect(await text('#service-facts')).toContain('36 items');
  });

  test('can be used by keyboard alone', async () => {
    await sendHistory('dave');
    await open('/');
    await tabTo('.skip-link');
    await page.keyboard.press('Enter');
    expect(await focused('#recommendations')).toBe(true);
    await open('/');
    await tabTo('#user-id');
    await page.keyboard.type('dave');
    await page.keyboard.press('Enter');
    await page.locator('#person-name', { hasText: 'dave' }).waitFor();
    await page.locator('#student-list .item').nth(3).waitFor();

    await tabTo('#student-list li:first-child .item');
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowDown');
    expect(await focused('#student-list li:nth-child(3) .item')).toBe(true);
    await page.keyboard.press('End');
    expect(await focused('#student-list li:last-child .item')).toBe(true);
    await page.keyboard.press('Home');
    await page.keyboard.press('Enter');
    const [chosen] = await ids('#student-list');
    await tabTo('.toolbar button');
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('Enter');
    await page.locator('#announcer', { hasText: 'The list changed' }).waitFor();
    // What was bought is in no list any more: the focus is on the row that took its place.
    expect(await focused('#student-list li:first-child .item')).toBe(true);
    const { json } = await service.call('GET', '/v1/users/dave');
    expect(json.history.at(-1)).toBe(chosen);

    await tabTo('#search-text');
    await page.keyboard.type('drama');
    await page.keyboard.press('Enter');
    await page.locator('#search-list li').first().waitFor();
    await tabTo('#search-list .item');

    await tabTo('[aria-label="Promote student-2"]');
    await page.keyboard.press('Enter');
    await page.locator('#current-model', { hasText: 'student-2' }).waitFor();
    await page.locator('#announcer', { hasText: 'student-2 answers now' }).waitFor();
    // The button is gone, and the focus is not.
    expect(await focused('#models-list')).toBe(true);

    await tabTo('#roll-back');
    await page.keyboard.press('Enter');
    await page.locator('#current-model', { hasText: 'student-1' }).waitFor();

    await tabTo('#key');
    await page.keyboard.press('Enter');
    expect(await focused('#key-input')).toBe(true);
    await page.keyboard.press('Escape');
    expect(await focused('#key')).toBe(true);
  });

  test('has no accessibility violation over the real service', async () => {
    await sendHistory('erin');
    await page.emulateMedia({ reducedMotion: 'reduce' });
    await open('/?user=erin');
    await page.locator('#student-list .item').first().click();
    expect(await accessibilityProblems(page)).toEqual([]);
  });

  test('asks for a key, reads with one that reads, and says that it may not write', async () => {
    const keys = join(folder, 'keys.json');
    const { key } = await createApiKey(keys, ['read']);
    const guarded = await startService({ keys, ...PAGE });
    try {
      await page.goto(await guarded.listen());
      await page.locator('#student-list .problem button', { hasText: 'Enter a key' }).click();
      await page.fill('#key-input', key);
      await page.keyboard.press('Enter');
      await page.fill('#search-text', 'drama');
      await page.keyboard.press('Enter');
      await page.locator('#search-list li').first().waitFor();
      await page.fill('#user-id', 'frank');
      await page.keyboard.press('Enter');
      await page.locator('#person-name', { hasText: 'frank' }).waitFor();
      await page.fill('#search-text', 'drama');
      await page.keyboard.press('Enter');
      await page.locator('#search-list .item').first().click();
      await page.locator('#search-list .toolbar button').first().click();
      await page.locator('#feedback-state .problem-title', { hasText: 'This key may not do that' }).waitFor();
    } finally {
      await page.close();
      await guarded.end();
    }
    // Chromium prints the refusals; the address is not that of the other service.
    const others = complaints.splice(0).filter((text) => !/status of 40[13]|^asked /.test(text));
    expect(others).toEqual([]);
  });
});
