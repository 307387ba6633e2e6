/** @import { ScoredItem } from './api.js' */
import { element } from './dom.js';

/**
 * Where a score came from: items of the history, and interests.
 *
 * @param {ScoredItem} item
 * @param {(id: string) => string} textOf
 */
export function explanation({ because = [], interests = [] }, textOf) {
  if (because.length + interests.length === 0) {
    return element('p', { class: 'small muted' }, 'This answer came without reasons.');
  }
  return element(
    'div',
    { class: 'reasons' },
    because.length > 0 &&
      weighted(
        'Because of',
        because.map(({ item, weight }) => ({ name: textOf(item), weight })),
      ),
    interests.length > 0 && weighted('Interests', interests),
  );
}

/**
 * Names with bars. A weight below zero speaks against the item.
 *
 * @param {string} title
 * @param {readonly { name: string, weight: number }[]} entries
 */
export function weighted(title, entries) {
  const largest = Math.max(...entries.map(({ weight }) => Math.abs(weight)), Number.MIN_VALUE);
  return element(
    'div',
    { class: 'weights' },
    element('p', { class: 'label' }, title),
    element(
      'ul',
      { 'aria-label': title },
      ...entries.map(({ name, weight }) => {
        const bar = element('span', { class: weight < 0 ? 'bar against' : 'bar', 'aria-hidden': 'true' });
        bar.style.setProperty('--share', String(Math.abs(weight) / largest));
        return element(
          'li',
          {},
          element('span', { class: 'name', dir: 'auto' }, name),
          element('span', { class: 'number' }, weight.toFixed(2)),
          bar,
        );
      }),
    ),
  );
}
