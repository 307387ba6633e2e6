/** The console page in Chromium, over a service that fails in every way it can, and whose texts are attacks. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { BrowserContext, Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { accessibilityProblems, chromiumIsMissing, skippedReason, startChromium, watch } from '../support/chromium.js';
import { type FakeItem, FakeService } from '../support/fake-service.js';

const items: FakeItem[] = JSON.parse(readFileSync(join(import.meta.dirname, '../fixtures/student/items.json'), 'utf8'));
/** Beside other tests on two cores, all takes its time. */
const WAIT_MS = 60_000;
/** Chromium itself prints one line for each answer that is no success. */
const FAILED_REQUEST = /^Failed to load resource/;

let chromium: { context: BrowserContext; stop: () => Promise<void> };
let service: FakeService;
let page: Page;
let url: string;
let complaints: string[];

const text = async (selector: string) => (await page.locator(selector).textContent())?.replace(/\s+/g, ' ').trim();
const open = async (path = '/') => {
  await page.goto(url + path);
  await page.locator('#student-list .state > *, #student-list li').first().waitFor();
};
const openUser = async () => {
  await open('/?user=alice');
  await page.locator('#other-list li').first().waitFor();
};

describe.skipIf(chromiumIsMissing !== undefined)(`the console page${skippedReason}`, () => {
  beforeAll(async () => {
    chromium = await startChromium();
  });
  afterAll(() => chromium.stop());
  beforeEach(async () => {
    service = new FakeService([...items]);
    service.users.set('alice', { history: items.slice(0, 11).map(({ id }) => id), hidden: [items[14]?.id ?? ''] });
    url = await service.start();
    page = await chromium.context.newPage();
    page.setDefaultTimeout(WAIT_MS);
    await page.emulateMedia({ reducedMotion: 'reduce' });
    complaints = watch(page, url, FAILED_REQUEST);
  });
  afterEach(async () => {
    await page.close();
    await service.stop();
    expect(complaints).toEqual([]);
  });

  test('shows texts of items, models, interests, users and errors as text', async () => {
    const attack = '<img src=x onerror="alert(1)"><script>alert(2)</script>';
    service.items = items.map(({ id }, index) => ({ id: `${id}<b>`, text: `${index} ${attack}` }));
    service.models.push({ name: `teacher ${attack}`, loaded: true, latencyMs: 3 });
    service.interestName = attack;
    service.users.set(attack, { history: service.items.slice(0, 3).map(({ id }) => id), hidden: [`${attack}`] });
    await open(`/?user=${encodeURIComponent(attack)}`);
    await page.locator('#other-list li').first().waitFor();
    expect(await text('#person-name')).toBe(attack);
    expect(await text('#student-list li:first-child .text')).toMatch(/^\d+ <img src=x onerror/);
    await page.locator('#student-list .item').first().click();
    expect(await text('#student-list .reasons')).toContain(attack);
    expect(await text('#models-list')).toContain(attack);
    expect(await text('#history')).toContain(attack);
    service.failures.set('/v1/events', { status: 400, code: attack, message: attack });
    await page.locator('#student-list .toolbar button').first().click();
    await page.locator('#feedback-state .problem').waitFor();
    expect(await text('#feedback-state')).toContain(attack);
    await page.fill('#search-text', attack);
    await page.keyboard.press('Enter');
    await page.locator('#search-list li, #search-list .empty').first().waitFor();
    expect(await text('#search-heading')).toContain(attack);
    expect(await page.locator('main img, main script, main b').count()).toBe(0);
  });

  test('asks for a key at 401, keeps it for the tab alone, and goes on', async () => {
    service.key = 'lmb_secret';
    await open();
    expect(await text('#student-list .problem-title')).toBe('A key is needed');
    await page.locator('#student-list .problem button', { hasText: 'Enter a key' }).click();
    await page.fill('#key-input', 'lmb_secret');
    await page.keyboard.press('Enter');
    await page.locator('#student-list li').first().waitFor();
    expect(await text('#key')).toBe('API key set');
    const places =
      'JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie, document.body.innerHTML])';
    expect(String(await page.evaluate(places)).split('lmb_secret')).toHaveLength(2);
    expect(await page.evaluate('sessionStorage.getItem("limbeck-api-key")')).toBe('lmb_secret');
    const other = await chromium.context.newPage();
    await other.goto(url);
    expect(await other.evaluate('sessionStorage.length')).toBe(0);
    await other.close();
    await page.locator('#key').click();
    await page.locator('#key-forget').click();
    await page.locator('#student-list .problem').waitFor();
  });

  test('says what a key may not do', async () => {
    await openUser();
    service.failures.set('/v1/events', { status: 403, code: 'ERR_FORBIDDEN', message: 'This key has no write scope.' });
    await page.locator('#student-list .item').first().click();
    await page.locator('#student-list .toolbar button').first().click();
    await page.locator('#feedback-state .problem').waitFor();
    expect(await text('#feedback-state')).toContain('This key may not do that');
    expect(await text('#feedback-state')).toContain('This key has no write scope.');
  });

  test('says when to come back at 503, and asks again', async () => {
    service.failures.set('/v1/recommend', { status: 503, code: 'ERR_OVERLOADED', retryAfter: 3 });
    await open();
    expect(await text('#student-list .problem')).toContain('Try again in 3 s');
    service.failures.clear();
    await page.locator('#student-list .problem button').click();
    await page.locator('#student-list li').first().waitFor();
  });

  test('says that nothing was stored at 507, and stores it when asked again', async () => {
    await openUser();
    service.failures.set('/v1/events', { status: 507, code: 'ERR_NO_SPACE', message: 'The disk is full.' });
    await page.locator('#student-list .item').first().click();
    await page.locator('#student-list .toolbar button').first().click();
    await page.locator('#feedback-state .problem').waitFor();
    expect(await text('#feedback-state .problem-title')).toBe('Not stored');
    expect(service.events).toHaveLength(0);
    service.failures.clear();
    await page.locator('#feedback-state button').click();
    await page.locator('#feedback-state .done').waitFor();
    expect(service.events).toMatchObject([{ userId: 'alice', type: 'view', strategy: 'balanced' }]);
  });

  test('serves a guest where no users are kept', async () => {
    const message = 'The service was started without a data directory: it keeps no events.';
    service.failures.set('/v1/users/alice', { status: 503, code: 'ERR_UNAVAILABLE', message });
    await open('/?user=alice');
    await page.locator('#person-state .problem').waitFor();
    expect(await text('#person-state')).toContain(message);
    await page.locator('#student-list .item').first().click();
    await page.locator('#student-list .toolbar button', { hasText: 'Click' }).click();
    await page.locator('#history li').first().waitFor();
    expect(service.events).toHaveLength(0);
    await page.locator('#student-list .item').first().click();
    await page.locator('#student-list .toolbar button', { hasText: 'Dismiss' }).click();
    await page.locator('#history summary').waitFor();
    expect(await text('#history')).toContain('1 dismissed');
  });

  test('says that it cannot reach the service', async () => {
    await openUser();
    await service.stop();
    await page.locator('#refresh').click();
    await page.locator('#student-list .problem').waitFor();
    expect(await text('#student-list .problem-title')).toBe('Not reachable');
    await page.locator('#status', { hasText: 'Not reachable' }).waitFor();
    service = new FakeService(items);
    await service.start();
  });

  test('says what is empty', async () => {
    service.items = [];
    service.users.clear();
    await open('/?user=nobody');
    await page.locator('#student-list', { hasText: 'Nothing is popular yet' }).waitFor();
    await page.locator('#history', { hasText: 'Nothing is known of this user yet' }).waitFor();
    await page.fill('#search-text', 'anything');
    await page.keyboard.press('Enter');
    await page.locator('#search-list .empty', { hasText: 'Nothing found.' }).waitFor();
  });

  test('shows the shape of what it waits for, and keeps the old list while a new one comes', async () => {
    let release = () => {};
    service.hold = new Promise((resolve) => {
      release = resolve;
    });
    await open();
    expect(await page.locator('#student-list [aria-busy=true] .skeleton').count()).toBe(1);
    release();
    await page.locator('#other-list li').first().waitFor();
    service.hold = new Promise((resolve) => {
      release = resolve;
    });
    await page.locator('#refresh').click();
    expect(await page.locator('#student-list [aria-busy=true] li').count()).toBe(10);
    release();
    await page.locator('#student-list :not([aria-busy]) li').first().waitFor();
  });

  test('does not show the answer for a person who is no longer asked about', async () => {
    await openUser();
    let release = () => {};
    service.hold = new Promise((resolve) => {
      release = resolve;
    });
    await page.locator('#refresh').click();
    service.hold = Promise.resolve();
    await page.locator('#guest').click();
    await page
      .locator('#other-facts', { hasText: 'popular' })
      .or(page.locator('#student-facts', { hasText: 'popular' }))
      .first()
      .waitFor();
    release();
    await page.waitForTimeout(200);
    expect(await text('#student-facts')).toContain('popular');
  });

  test('says plainly that there is no teacher, and stands the student beside popularity', async () => {
    service.models = service.models.filter(({ name }) => name !== 'teacher');
    await openUser();
    expect(await text('#compare-note')).toContain('no model named as a teacher');
    expect(await text('#other-title')).toBe('Popularity');
    await page.selectOption('#compare', 'student-2');
    await page.locator('#other-list button', { hasText: 'Load student-2' }).click();
    await page.locator('#other-list li').first().waitFor();
    expect(await text('#other-title')).toBe('Other model');
  });

  test('compares the teacher by its time', async () => {
    await openUser();
    expect(await text('#other-title')).toBe('Teacher');
    expect([await text('#student-latency'), await text('#other-latency')]).toEqual(['0.18 ms', '17.6 ms']);
    expect(await text('#overlap')).toMatch(/^\d+ of 10 items in both lists · the student answers 96 times as fast$/);
  });

  test('says that a model was refused, and that the current one stays', async () => {
    await openUser();
    const message = 'The model was refused (ERR_CHECKPOINT_MISMATCH); the current one keeps serving.';
    service.failures.set('/v1/models/promote', { status: 422, code: 'ERR_MODEL_REFUSED', message });
    await page.locator('#models-list button', { hasText: 'Promote' }).first().click();
    await page.locator('#models-state .problem').waitFor();
    expect(await text('#models-state')).toContain(message);
    expect(await text('#current-model')).toBe('student-1');
  });

  test('draws the latest metrics', async () => {
    await openUser();
    await page.locator('[data-metric=rate] .line').waitFor();
    await page.locator('#refresh').click();
    await page.locator('[data-metric=p50] dd', { hasText: /^0\.\d+ ms|\d+ µs$/ }).waitFor();
    expect(await text('#service-facts')).toBe('36 items · 1 user · 0 events since the start');
    service.failures.set('/v1/recommend', { status: 503, code: 'ERR_OVERLOADED', retryAfter: 1 });
    await page.locator('#refresh').click();
    await page.locator('[data-metric=unavailable] dd', { hasText: '2' }).waitFor();
  });

  test.each(['light', 'dark'] as const)('has no accessibility violation, %s', async (colorScheme) => {
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await openUser();
    expect(await accessibilityProblems(page)).toEqual([]);
    await page.locator('#student-list .item').nth(1).click();
    await page.locator('#student-list .toolbar button', { hasText: 'Click' }).click();
    await page.locator('.change').first().waitFor();
    await page.locator('#student-list .item').nth(2).click();
    await page.locator('#student-list .item').nth(2).hover();
    await page.fill('#search-text', 'drama');
    await page.keyboard.press('Enter');
    await page.locator('#search-list li').first().waitFor();
    await page.locator('#history summary').click();
    await page.locator('[data-metric=rate] .line').waitFor();
    expect(await accessibilityProblems(page)).toEqual([]);
    service.failures.set('/v1/recommend', { status: 503, code: 'ERR_OVERLOADED', retryAfter: 1 });
    await page.locator('#refresh').click();
    await page.locator('#other-list .problem').waitFor();
    expect(await accessibilityProblems(page)).toEqual([]);
    await page.locator('#key').click();
    expect(await accessibilityProblems(page)).toEqual([]);
  });

  test.each([360, 768, 1440])('fits a window of %i px', async (width) => {
    await page.setViewportSize({ width, height: 800 });
    service.items[20] = { id: 'long', text: `${'W'.repeat(300)} مرحبا` };
    await openUser();
    await page.locator('#student-list .item').first().click();
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBe(width);
  });

  test('follows the system to dark, and the toggle over both', async () => {
    const paper = () => page.evaluate('getComputedStyle(document.body).backgroundColor');
    await page.emulateMedia({ colorScheme: 'dark' });
    await open();
    expect(await paper()).toBe('rgb(25, 24, 23)');
    await page.locator('#theme').click();
    expect([await text('#theme'), await paper()]).toEqual(['Theme: light', 'rgb(253, 252, 250)']);
    await page.reload();
    expect(await paper()).toBe('rgb(253, 252, 250)');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.locator('#theme').click();
    expect([await text('#theme'), await paper()]).toEqual(['Theme: dark', 'rgb(25, 24, 23)']);
    await page.locator('#theme').click();
    expect([await text('#theme'), await paper()]).toEqual(['Theme: auto', 'rgb(253, 252, 250)']);
  });

  test.each([
    ['no-preference', true],
    ['reduce', false],
  ] as const)('moves rows when motion is %s: %s', async (reducedMotion, moves) => {
    await page.emulateMedia({ reducedMotion });
    await openUser();
    await page.evaluate('Element.prototype.animate = function () { (window.animated ??= []).push(this.tagName); }');
    await page.locator('#student-list .item').nth(1).click();
    await page.locator('#student-list .toolbar button', { hasText: 'Click' }).click();
    await page.locator('.change').first().waitFor();
    expect(await page.evaluate('window.animated !== undefined')).toBe(moves);
  });
});
