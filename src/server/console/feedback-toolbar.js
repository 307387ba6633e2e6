/** @import { EventType } from './api.js' */
import { element } from './dom.js';
import { makeRoving, setTabStop } from './roving.js';

/** @type {{ type: EventType, label: string }[]} */
const ACTIONS = [
  { type: 'view', label: 'View' },
  { type: 'click', label: 'Click' },
  { type: 'purchase', label: 'Purchase' },
  { type: 'dismiss', label: 'Dismiss' },
];
const STARS = [1, 2, 3, 4, 5];

/**
 * What can be done with an item. One tab stop; the arrow keys move within it.
 *
 * @param {{ id: string, text: string }} item
 * @param {{ send: (type: EventType, value?: number) => void, showSimilar: () => void }} actions
 */
export function feedbackToolbar({ id, text }, { send, showSimilar }) {
  /**
   * @param {string} key
   * @param {Record<string, any>} attributes
   * @param {string} label
   */
  const button = (key, attributes, label) =>
    element('button', { type: 'button', 'data-roving': true, 'data-key': `${key} ${id}`, ...attributes }, label);
  const toolbar = element(
    'div',
    { class: 'toolbar', role: 'toolbar', 'aria-label': `Feedback on ${text}`, 'data-group': true },
    ...ACTIONS.map(({ type, label }) => button(type, { class: 'button small', click: () => send(type) }, label)),
    element(
      'span',
      { class: 'stars', role: 'group', 'aria-label': 'Rating' },
      ...STARS.map((value) =>
        button(
          `rating${value}`,
          { class: 'star', 'aria-label': `Rate ${value} of 5`, click: () => send('rating', value) },
          '★',
        ),
      ),
    ),
    button('similar', { class: 'button small quiet', click: showSimilar }, 'Similar items'),
  );
  makeRoving(toolbar, 'horizontal');
  setTabStop(toolbar);
  return toolbar;
}
