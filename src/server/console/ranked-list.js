/** @import { EventType, ScoredItem } from './api.js' */
/** @import { ItemTexts } from './item-texts.js' */
/** @import { RankChange } from './rank-changes.js' */
import { element } from './dom.js';
import { explanation } from './explanation.js';
import { feedbackToolbar } from './feedback-toolbar.js';
import { problemNotice } from './problem-notice.js';
import { makeRoving, setTabStop } from './roving.js';

/** Of an item that moves to its new place. */
const MOVE_MS = 260;
const SKELETON_ROWS = 6;

/**
 * @typedef {object} Shown
 * @property {readonly ScoredItem[]} items Best first.
 * @property {string} [requestId]
 * @property {string} [strategy]
 * @property {Map<string, RankChange>} [changes] To highlight.
 * @property {boolean} [hasReasons] Whether the answer was asked to explain itself.
 */

/**
 * Items in order. Each row opens to its reasons and its feedback. The rows are one tab stop; arrow keys move between
 * them.
 */
export class RankedList {
  #texts;
  #feedback;
  #showSimilar;
  #prefix;
  #list;
  #state;
  /** @type {string | undefined} Id of the item that is open. */
  #open;
  /** @type {Shown} */
  #shown = { items: [] };

  /**
   * @param {object} options
   * @param {string} options.label
   * @param {string} options.prefix Of the ids of elements.
   * @param {ItemTexts} options.texts
   * @param {(item: ScoredItem, type: EventType, details: { value?: number | undefined, requestId?: string | undefined, strategy?: string | undefined }) => void} options.feedback
   * @param {(item: ScoredItem) => void} options.showSimilar
   */
  constructor({ label, prefix, texts, feedback, showSimilar }) {
    this.#texts = texts;
    this.#feedback = feedback;
    this.#showSimilar = showSimilar;
    this.#prefix = prefix;
    this.#list = element('ol', { class: 'ranked', 'aria-label': label, 'data-group': true });
    this.#state = element('div', { class: 'state' });
    this.element = element('div', { class: 'ranked-list' }, this.#state, this.#list);
    makeRoving(this.#list, 'vertical');
  }

  /** @returns {string[]} */
  get ids() {
    return this.#shown.items.map(({ id }) => id);
  }

  /** What is shown stays, and is marked as old; with nothing shown, the shape of what will come. */
  showLoading() {
    this.element.setAttribute('aria-busy', 'true');
    if (this.#shown.items.length > 0) return;
    this.#state.replaceChildren(
      element(
        'div',
        { class: 'skeleton' },
        element('p', { class: 'visually-hidden' }, 'Loading'),
        ...Array.from({ length: SKELETON_ROWS }, () => element('span', { 'aria-hidden': 'true' })),
      ),
    );
  }

  /** @param {...(Node | string)} content Instead of items. */
  showState(...content) {
    this.#shown = { items: [] };
    this.#list.replaceChildren();
    this.#state.replaceChildren(...content);
    this.element.removeAttribute('aria-busy');
  }

  /**
   * @param {unknown} error
   * @param {() => void} [retry]
   */
  showProblem(error, retry) {
    this.showState(problemNotice(error, retry === undefined ? {} : { retry }));
  }

  /** @param {Shown} shown */
  show(shown) {
    const places = this.#places();
    const focus = this.#focus();
    this.#state.replaceChildren();
    this.element.removeAttribute('aria-busy');
    this.#shown = shown;
    if (!shown.items.some(({ id }) => id === this.#open)) this.#open = undefined;
    this.#list.replaceChildren(...shown.items.map((item, index) => this.#row(item, index)));
    setTabStop(this.#list);
    this.#restoreFocus(focus);
    if (shown.changes !== undefined) this.#animate(places, shown.changes);
  }

  /**
   * Marks the items that another list has too.
   *
   * @param {ReadonlySet<string>} ids
   */
  markShared(ids) {
    for (const row of this.#rows()) {
      const isShared = ids.has(row.dataset['id'] ?? '');
      row.classList.toggle('shared', isShared);
      const note = row.querySelector('.in-both');
      if (note !== null) note.textContent = isShared ? 'In both lists. ' : '';
    }
  }

  /**
   * @param {ScoredItem} item
   * @param {number} index
   */
  #row(item, index) {
    const text = this.#texts.get(item.id);
    const detail = element('div', { class: 'detail', id: `${this.#prefix}-detail-${index}`, hidden: true });
    const button = element(
      'button',
      {
        type: 'button',
        class: 'item',
        'data-roving': true,
        'data-key': `row ${item.id}`,
        'aria-expanded': 'false',
        'aria-controls': detail.id,
        click: () => this.#toggle(item.id),
      },
      element('span', { class: 'rank', 'aria-hidden': 'true' }, index + 1),
      element('span', { class: 'visually-hidden in-both' }),
      element('span', { class: 'text', dir: 'auto' }, text),
      changeMark(this.#shown.changes?.get(item.id)),
      element('span', { class: 'score' }, item.score.toFixed(3)),
    );
    const row = element('li', { 'data-id': item.id }, button, detail);
    if (item.id === this.#open) this.#fill(row, item);
    return row;
  }

  /** @param {string} id */
  #toggle(id) {
    const opening = this.#open === id ? undefined : id;
    this.#open = opening;
    for (const row of this.#rows()) {
      const item = this.#shown.items.find((one) => one.id === row.dataset['id']);
      if (item !== undefined && item.id === opening) this.#fill(row, item);
      else empty(row);
    }
  }

  /**
   * @param {HTMLElement} row
   * @param {ScoredItem} item
   */
  #fill(row, item) {
    const { requestId, strategy, hasReasons = false } = this.#shown;
    const text = this.#texts.get(item.id);
    row.querySelector('.item')?.setAttribute('aria-expanded', 'true');
    const detail = /** @type {HTMLElement} */ (row.querySelector('.detail'));
    detail.hidden = false;
    detail.replaceChildren(
      ...(hasReasons ? [explanation(item, (id) => this.#texts.get(id))] : []),
      feedbackToolbar(
        { id: item.id, text },
        {
          send: (type, value) =>
            this.#feedback(item, type, {
              ...(value !== undefined && { value }),
              ...(requestId !== undefined && { requestId }),
              ...(strategy !== undefined && { strategy }),
            }),
          showSimilar: () => this.#showSimilar(item),
        },
      ),
      element('p', { class: 'small muted id' }, 'Item ', element('code', {}, item.id)),
    );
  }

  /** @returns {HTMLElement[]} */
  #rows() {
    return /** @type {HTMLElement[]} */ ([...this.#list.children]);
  }

  /** Where each row is on the screen. */
  #places() {
    return new Map(this.#rows().map((row) => [row.dataset['id'] ?? '', row.getBoundingClientRect().top]));
  }

  /** The control that has the focus, and the place of its row. */
  #focus() {
    const { activeElement } = document;
    if (!(activeElement instanceof HTMLElement) || !this.#list.contains(activeElement)) return undefined;
    const index = this.#rows().findIndex((row) => row.contains(activeElement));
    return { key: activeElement.dataset['key'], index };
  }

  /**
   * To the same control; when its item left, to the row that took its place.
   *
   * @param {{ key: string | undefined, index: number } | undefined} focus
   */
  #restoreFocus(focus) {
    if (focus === undefined) return;
    const controls = /** @type {HTMLElement[]} */ ([...this.#list.querySelectorAll('[data-key]')]);
    const same = controls.find(({ dataset }) => dataset['key'] === focus.key);
    const row = this.#rows()[Math.min(focus.index, this.#shown.items.length - 1)];
    const target = same ?? row?.querySelector('button');
    target?.focus({ preventScroll: true });
  }

  /**
   * @param {Map<string, number>} before
   * @param {Map<string, RankChange>} changes
   */
  #animate(before, changes) {
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) return;
    for (const row of this.#rows()) {
      const id = row.dataset['id'] ?? '';
      const old = before.get(id);
      const distance = old === undefined ? 0 : old - row.getBoundingClientRect().top;
      const timing = { duration: MOVE_MS, easing: 'cubic-bezier(.2, .7, .2, 1)' };
      if (changes.get(id)?.kind === 'new') row.animate([{ opacity: 0 }, { opacity: 1 }], timing);
      else if (distance !== 0) row.animate([{ transform: `translateY(${distance}px)` }, { transform: 'none' }], timing);
    }
  }
}

/** @param {HTMLElement} row */
function empty(row) {
  row.querySelector('.item')?.setAttribute('aria-expanded', 'false');
  const detail = /** @type {HTMLElement} */ (row.querySelector('.detail'));
  detail.hidden = true;
  detail.replaceChildren();
}

/** @param {RankChange | undefined} change */
function changeMark(change) {
  if (change === undefined) return null;
  if (change.kind === 'new') return element('span', { class: 'change new' }, 'new');
  const direction = change.by > 0 ? 'up' : 'down';
  const places = Math.abs(change.by);
  return element(
    'span',
    { class: `change ${direction}` },
    element('span', { 'aria-hidden': 'true' }, `${change.by > 0 ? '↑' : '↓'}${places}`),
    element('span', { class: 'visually-hidden' }, `moved ${direction} by ${places}`),
  );
}
