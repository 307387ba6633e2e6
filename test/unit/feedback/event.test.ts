import { describe, expect, it } from 'vitest';
import { checkEvents, MAX_EVENT_BYTES, parseStoredEvent } from '../../../src/feedback/event.js';

const NOW = 1_700_000_000_000;
const click = { userId: 'u', itemId: 'i', type: 'click' };

describe('checkEvents', () => {
  it('completes the time, and keeps what is known', () => {
    const full = { ...click, id: 'a', type: 'rating', value: 1, time: 5, strategy: 's', requestId: 'r' };
    expect(checkEvents([click, full], NOW)).toEqual([{ ...click, time: NOW }, full]);
  });

  it('takes a time after the receipt for the receipt', () => {
    expect(checkEvents([{ ...click, time: NOW + 1 }], NOW)[0]?.time).toBe(NOW);
  });

  it('copies no prototype and no accessor', () => {
    const [event] = checkEvents(JSON.parse('[{"userId":"__proto__","itemId":"constructor","type":"view"}]'), NOW);
    expect(Object.getPrototypeOf(event)).toBe(Object.prototype);
    expect(event).toEqual({ userId: '__proto__', itemId: 'constructor', type: 'view', time: NOW });
  });

  it.each<[string, unknown, RegExp]>([
    ['no array', click, /^Expected events to be an array of events, got an object\.$/],
    ['null', [null], /events\[0\] to be an object, got null/],
    ['an array', [[]], /events\[0\] to be an object, got a list/],
    ['no user', [{ itemId: 'i', type: 'view' }], /events\[0\]\.userId to be a string .* got undefined/],
    ['a number for a user', [{ ...click, userId: 7 }], /events\[0\]\.userId .* got 7/],
    ['an empty item', [click, { ...click, itemId: '' }], /events\[1\]\.itemId .* got ""/],
    ['a long item', [{ ...click, itemId: 'ü'.repeat(257) }], /events\[0\]\.itemId to be a string of 1 to 512 bytes/],
    ['a lone surrogate', [{ ...click, id: 'a\ud800' }], /events\[0\]\.id .* without lone surrogates/],
    ['an empty id', [{ ...click, id: '' }], /events\[0\]\.id /],
    ['null for an id', [{ ...click, id: null }], /events\[0\]\.id .* got null/],
    ['an unknown type', [{ ...click, type: 'like' }], /events\[0\]\.type to be one of view, click, .* got "like"/],
    ['no type', [{ userId: 'u', itemId: 'i' }], /events\[0\]\.type .* got undefined/],
    ['a rating without value', [{ ...click, type: 'rating' }], /events\[0\]\.value to be a number from 1 to 5/],
    ['a rating of 0', [{ ...click, type: 'rating', value: 0 }], /events\[0\]\.value .* got 0/],
    ['a rating of NaN', [{ ...click, type: 'rating', value: Number.NaN }], /events\[0\]\.value .* got NaN/],
    ['a rating in words', [{ ...click, type: 'rating', value: '5' }], /events\[0\]\.value .* got "5"/],
    ['a value of a click', [{ ...click, value: 3 }], /events\[0\]\.value to be nothing, because it is a click, got 3/],
    ['a time in words', [{ ...click, time: '2024' }], /events\[0\]\.time to be whole milliseconds since 1970/],
    ['a negative time', [{ ...click, time: -1 }], /events\[0\]\.time /],
    ['a time with fractions', [{ ...click, time: 1.5 }], /events\[0\]\.time /],
    ['an endless time', [{ ...click, time: Infinity }], /events\[0\]\.time /],
    ['an unknown field', [{ ...click, user: 'u' }], /events\[0\]\.user to be one of id, userId, /],
    ['a prototype', JSON.parse('[{"userId":"u","itemId":"i","type":"view","__proto__":{}}]'), /events\[0\]\.__proto__/],
  ])('refuses %s', (_, events, message) => {
    expect(() => checkEvents(events, NOW)).toThrow(message);
    try {
      checkEvents(events, NOW);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
  });

  it('accepts nothing that is longer than a record may be', () => {
    const longest = '\u0001'.repeat(512);
    const event = { id: longest, userId: longest, itemId: longest, strategy: longest, requestId: longest };
    const [checked] = checkEvents([{ ...event, type: 'rating', value: 4.123456789012345, time: NOW }], NOW);
    expect(Buffer.byteLength(JSON.stringify(checked))).toBeLessThanOrEqual(MAX_EVENT_BYTES);
  });
});

describe('parseStoredEvent', () => {
  it('reads what was written, and nothing else', () => {
    const [event] = checkEvents([click], NOW);
    expect(parseStoredEvent(JSON.stringify(event), NOW)).toEqual(event);
    for (const json of ['', '{', '[]', 'null', '{"userId":"u"}', '{"a":1}']) {
      expect(parseStoredEvent(json, NOW)).toBeUndefined();
    }
  });
});
