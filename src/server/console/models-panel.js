/** @import { ModelCatalogue } from './models.js' */
import { announce } from './announce.js';
import { byId, element, render } from './dom.js';
import { countOf } from './format.js';
import { problemNotice } from './problem-notice.js';

/** The models, and which one answers. A change is made while requests go on; a refused one changes nothing. */
export class ModelsPanel {
  #models;
  #list = byId('models-list', HTMLElement);
  #state = byId('models-state', HTMLElement);
  #current = byId('current-model', HTMLElement);
  #isChanging = false;

  /** @param {ModelCatalogue} models */
  constructor(models) {
    this.#models = models;
    models.addEventListener('listed', () => this.#show());
    byId('models-refresh', HTMLButtonElement).addEventListener('click', () => void this.refresh());
    byId('roll-back', HTMLButtonElement).addEventListener('click', () =>
      this.#change(
        () => models.rollBack(),
        () => `Rolled back: ${models.current} answers now.`,
      ),
    );
  }

  async refresh() {
    try {
      await this.#models.refresh();
      this.#state.replaceChildren();
    } catch (error) {
      this.#state.replaceChildren(problemNotice(error, { retry: () => void this.refresh() }));
    }
  }

  /**
   * @param {() => Promise<void>} change
   * @param {() => string} describe
   */
  async #change(change, describe) {
    if (this.#isChanging) return;
    this.#isChanging = true;
    this.#list.setAttribute('aria-busy', 'true');
    try {
      await change();
      this.#state.replaceChildren(element('p', { class: 'done' }, describe()));
      announce(describe());
    } catch (error) {
      this.#state.replaceChildren(problemNotice(error));
      announce(error instanceof Error ? error.message : String(error));
    } finally {
      this.#isChanging = false;
      this.#list.removeAttribute('aria-busy');
    }
  }

  #show() {
    const { models, current } = this.#models;
    this.#current.textContent = current;
    const button = (
      /** @type {string} */ verb,
      /** @type {string} */ name,
      /** @type {() => Promise<void>} */ change,
      /** @type {string} */ done,
    ) =>
      element(
        'button',
        {
          type: 'button',
          class: 'button small',
          'data-key': `${verb} ${name}`,
          'aria-label': `${verb} ${name}`,
          click: () => this.#change(change, () => done),
        },
        verb,
      );
    render(
      this.#list,
      ...models.map(({ name, loaded, numItems }) => {
        const isCurrent = name === current;
        const state = isCurrent ? 'answers' : loaded === false ? 'on disk' : 'in memory';
        return element(
          'li',
          { class: isCurrent ? 'model current' : 'model', 'aria-current': isCurrent ? 'true' : undefined },
          element('span', { class: 'name' }, name),
          element('span', { class: isCurrent ? 'tag strong' : 'tag' }, state),
          element('span', { class: 'muted small items' }, numItems === undefined ? '' : countOf(numItems, 'item')),
          element(
            'span',
            { class: 'row' },
            !isCurrent &&
              loaded === false &&
              button('Load', name, () => this.#models.load(name), `${name} is in memory.`),
            !isCurrent && button('Promote', name, () => this.#models.promote(name), `${name} answers now.`),
          ),
        );
      }),
    );
  }
}
