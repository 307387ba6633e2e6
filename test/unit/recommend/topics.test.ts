import { describe, expect, test } from 'vitest';
import { nameTopics, numTopicsFor } from '../../../src/recommend/topics.js';

const item = (id: string, text: string, ...categories: string[]) => ({ id, text, categories });

describe('nameTopics', () => {
  test('takes the categories that set a topic apart, not those that all items have', () => {
    const items = [
      item('a', '', 'Film', 'Horror'),
      item('b', '', 'Film', 'Horror', 'Drama'),
      item('c', '', 'Film', 'Comedy', 'Romance'),
      item('d', '', 'Film', 'Comedy', 'Romance'),
    ];
    expect(nameTopics(items, Int32Array.of(0, 0, 1, 1), 2)).toEqual(['Horror', 'Comedy, Romance']);
  });

  test('takes words where there are no categories, and never the same name twice', () => {
    const items = [
      item('a', 'The haunted castle'),
      item('b', 'A haunted house of the dead'),
      item('c', 'The space station'),
      item('d', 'The last space flight'),
    ];
    expect(nameTopics(items, Int32Array.of(0, 0, 1, 1), 2)).toEqual(['haunted', 'space']);
    const same = ['x', 'y', 'z', 'w'].map((id) => item(id, '', 'Drama'));
    const names = nameTopics([...same, item('c', '', 'Comedy')], Int32Array.of(0, 0, 1, 1, 2), 4);
    expect(names).toEqual(['Drama', 'Drama 2', 'Comedy', 'Topic 4']);
  });

  test('leaves out removed items, and is not confused by names of object properties', () => {
    const items = [
      undefined,
      item('a', 'constructor toString'),
      item('b', '__proto__ constructor'),
      item('c', 'other'),
    ];
    expect(nameTopics(items, Int32Array.of(0, 0, 0, 1), 2)).toEqual(['constructor', 'other']);
  });
});

test('topics of a large catalogue are named by a part of it, whatever its order', () => {
  const labels = ['Horror', 'Comedy', 'Drama', 'Western', 'Film noir'];
  const items = Array.from({ length: 400_000 }, (_, i) => item(`${i}`, '', 'Film', labels[i % 5] ?? ''));
  let reads = 0;
  const counted = items.map((one) => ({
    ...one,
    get text() {
      reads++;
      return '';
    },
  }));
  expect(
    nameTopics(
      counted,
      Int32Array.from(items.keys(), (i) => i % 5),
      5,
    ),
  ).toEqual(labels);
  expect(reads).toBeGreaterThan(90_000);
  expect(reads).toBeLessThan(110_000);
});

test('small topics of a large catalogue are named by all of their items', () => {
  const items = Array.from({ length: 300_000 }, (_, i) => item(`${i}`, '', 'Drama'));
  const topics = new Int32Array(items.length);
  for (let topic = 1; topic <= 20; topic++) {
    for (const i of [topic, topic + 100_000, topic + 210_000]) {
      items[i] = item(`${i}`, '', `Genre ${topic}`);
      topics[i] = topic;
    }
  }
  const names = nameTopics(items, topics, 21);
  expect(names.slice(1)).toEqual(Array.from({ length: 20 }, (_, i) => `Genre ${i + 1}`));
});

test('there are as many topics as fit the catalogue', () => {
  expect([1, 2, 36, 2400, 10_000, 1_000_000].map(numTopicsFor)).toEqual([1, 2, 4, 35, 64, 64]);
});
