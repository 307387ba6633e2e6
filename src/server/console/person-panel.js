/** @import { Api } from './api.js' */
/** @import { ItemTexts } from './item-texts.js' */
/** @import { Person } from './person.js' */
import { announce } from './announce.js';
import { byId, element, render } from './dom.js';
import { weighted } from './explanation.js';
import { countOf } from './format.js';
import { problemNotice } from './problem-notice.js';

/** Of the history, until more is asked for. */
const FIRST_ITEMS = 8;
const MORE_ITEMS = 50;
const MAX_INTERESTS = 6;
const RECENT_PLACE = 'limbeck-recent-users';
const MAX_RECENT = 12;

/** Who it is, what they chose, and what that tells of them. */
export class PersonPanel {
  #api;
  #person;
  #texts;
  #input = byId('user-id', HTMLInputElement);
  #state = byId('person-state', HTMLElement);
  #name = byId('person-name', HTMLElement);
  #history = byId('history', HTMLElement);
  #interests = byId('interests', HTMLElement);
  #numShown = FIRST_ITEMS;
  #asking = new AbortController();

  /** @param {{ api: Api, person: Person, texts: ItemTexts }} parts */
  constructor({ api, person, texts }) {
    this.#api = api;
    this.#person = person;
    this.#texts = texts;
    byId('user-form', HTMLFormElement).addEventListener('submit', (event) => {
      event.preventDefault();
      void this.open(this.#input.value.trim());
    });
    byId('guest', HTMLButtonElement).addEventListener('click', () => {
      this.#input.value = '';
      void this.open('');
    });
    this.#listRecent();
  }

  /**
   * @param {string} userId Empty for a guest.
   * @returns {Promise<boolean>} Whether it is that person now; otherwise, the panel says why.
   */
  async open(userId) {
    this.#input.value = userId;
    this.#state.setAttribute('aria-busy', 'true');
    try {
      await this.#person.open(userId);
      this.#state.replaceChildren();
      if (userId !== '') this.#remember(userId);
      const known = this.#person.history.length;
      announce(userId === '' ? 'Guest.' : `User ${userId}: ${countOf(known, 'item')} in the history.`);
      return true;
    } catch (error) {
      this.#state.replaceChildren(problemNotice(error, { retry: () => void this.open(userId) }));
      return false;
    } finally {
      this.#state.removeAttribute('aria-busy');
    }
  }

  /** @param {{ isOther?: boolean }} [options] */
  async refresh({ isOther = false } = {}) {
    if (isOther) this.#numShown = FIRST_ITEMS;
    const { userId, isGuest } = this.#person;
    this.#name.textContent = isGuest ? 'Guest' : userId;
    this.#asking.abort();
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    await Promise.all([this.#showHistory(signal), this.#showInterests(signal)]);
  }

  /** @param {AbortSignal} signal */
  async #showHistory(signal) {
    const { history, hidden, isGuest } = this.#person;
    if (history.length + hidden.length === 0) {
      const hint = isGuest
        ? 'A guest’s history is in this page alone. Open an item and click or rate it to begin one.'
        : 'Nothing is known of this user yet. Until then, they are shown what is popular.';
      render(this.#history, element('p', { class: 'empty' }, hint));
      return;
    }
    const latest = history.slice(-this.#numShown).reverse();
    try {
      await this.#texts.load([...latest, ...hidden.slice(-this.#numShown)]);
    } catch (error) {
      if (!signal.aborted) render(this.#history, problemNotice(error, { retry: () => void this.refresh() }));
      return;
    }
    if (signal.aborted) return;
    const numMore = Math.min(MORE_ITEMS, history.length - latest.length);
    const more = () => {
      this.#numShown += MORE_ITEMS;
      void this.#showHistory(signal);
    };
    render(
      this.#history,
      element('p', { class: 'small muted' }, `${countOf(history.length, 'item')}, latest first`),
      this.#list(latest),
      numMore > 0 &&
        element(
          'button',
          { type: 'button', class: 'button small', 'data-key': 'more', click: more },
          `${numMore} more`,
        ),
      hidden.length > 0 &&
        element(
          'details',
          {},
          element('summary', { 'data-key': 'hidden' }, `${hidden.length} dismissed`),
          this.#list(hidden.slice(-this.#numShown).reverse()),
        ),
    );
  }

  /** @param {readonly string[]} ids */
  #list(ids) {
    return element('ul', { class: 'history' }, ...ids.map((id) => element('li', { dir: 'auto' }, this.#texts.get(id))));
  }

  /** @param {AbortSignal} signal */
  async #showInterests(signal) {
    const { history, isGuest, userId } = this.#person;
    if (history.length === 0) {
      render(this.#interests, element('p', { class: 'empty' }, 'They follow from the history.'));
      return;
    }
    const who = isGuest ? { history } : { userId };
    try {
      const { interests } = await this.#api.interests({ ...who, k: MAX_INTERESTS }, signal);
      if (signal.aborted) return;
      const content =
        interests.length > 0
          ? weighted('Interests', interests)
          : element('p', { class: 'empty' }, 'This model names no interests.');
      render(this.#interests, content);
    } catch (error) {
      if (!signal.aborted) render(this.#interests, problemNotice(error, { retry: () => void this.refresh() }));
    }
  }

  /** @param {string} userId */
  #remember(userId) {
    const recent = [userId, ...readRecent().filter((id) => id !== userId)].slice(0, MAX_RECENT);
    sessionStorage.setItem(RECENT_PLACE, JSON.stringify(recent));
    this.#listRecent();
  }

  #listRecent() {
    const options = readRecent().map((value) => element('option', { value }));
    byId('recent-users', HTMLDataListElement).replaceChildren(...options);
  }
}

/** @returns {string[]} Users of this tab, latest first. */
function readRecent() {
  const stored = sessionStorage.getItem(RECENT_PLACE);
  if (stored === null) return [];
  return JSON.parse(stored);
}
