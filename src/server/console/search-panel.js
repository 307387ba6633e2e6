/** @import { Api, ScoredItem } from './api.js' */
/** @import { ItemTexts } from './item-texts.js' */
/** @import { Person } from './person.js' */
import { announce } from './announce.js';
import { byId, element } from './dom.js';
import { countOf } from './format.js';
import { RankedList } from './ranked-list.js';

/** Items that a text asks for, or that are like one item. */
export class SearchPanel {
  #api;
  #person;
  #texts;
  #list;
  #query = byId('search-text', HTMLInputElement);
  #isPersonal = byId('search-personal', HTMLInputElement);
  #heading = byId('search-heading', HTMLElement);
  #turn = 0;
  #isForPerson = false;

  /**
   * @param {{ api: Api, person: Person, texts: ItemTexts,
   *   feedback: ConstructorParameters<typeof RankedList>[0]['feedback'] }} parts
   */
  constructor({ api, person, texts, feedback }) {
    this.#api = api;
    this.#person = person;
    this.#texts = texts;
    const showSimilar = (/** @type {ScoredItem} */ item) => this.showSimilar(item);
    this.#list = new RankedList({ label: 'Items found', prefix: 'search', texts, feedback, showSimilar });
    byId('search-list', HTMLElement).append(this.#list.element);
    byId('search-form', HTMLFormElement).addEventListener('submit', (event) => {
      event.preventDefault();
      const text = this.#query.value.trim();
      if (text !== '') void this.#search(text);
      else this.#query.focus();
    });
    this.clear();
  }

  /** What was found by the taste of one person is not another's. Any other search stays, one on its way too. */
  clearPersonal() {
    if (this.#isForPerson) this.clear();
  }

  clear() {
    this.#turn++;
    this.#isForPerson = false;
    this.#heading.textContent = '';
    this.#list.showState(
      element('p', { class: 'empty' }, 'Describe what is wanted. The words need not be in an item’s text.'),
    );
  }

  /** @param {ScoredItem} item */
  showSimilar(item) {
    const title = `Like “${this.#texts.get(item.id)}”`;
    byId('search', HTMLElement).scrollIntoView({ block: 'start' });
    this.#heading.focus({ preventScroll: true });
    this.#isForPerson = false;
    return this.#show(title, () => this.#api.similar({ item: item.id, k: 10 }));
  }

  /** @param {string} text */
  #search(text) {
    const { history, isGuest, request } = this.#person;
    const isPersonal = this.#isPersonal.checked && history.length > 0;
    this.#isForPerson = isPersonal;
    const taste = isPersonal ? (isGuest ? { history } : request) : {};
    return this.#show(`Found for “${text}”`, () => this.#api.search({ text, k: 10, ...taste }));
  }

  /**
   * @param {string} title
   * @param {() => Promise<{ items: ScoredItem[] }>} ask
   */
  async #show(title, ask) {
    const turn = ++this.#turn;
    this.#heading.textContent = title;
    this.#list.showLoading();
    try {
      const { items } = await ask();
      this.#texts.remember(items);
      await this.#texts.load(items.map(({ id }) => id));
      if (turn !== this.#turn) return;
      if (items.length > 0) this.#list.show({ items });
      else this.#list.showState(element('p', { class: 'empty' }, 'Nothing found.'));
      announce(`${countOf(items.length, 'item')} found.`);
    } catch (error) {
      if (turn === this.#turn) this.#list.showProblem(error, () => void this.#show(title, ask));
    }
  }
}
