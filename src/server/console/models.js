/** @import { Api, Models } from './api.js' */

/** The models that the service has. Sends `listed` after each look, `swapped` when another one answers. */
export class ModelCatalogue extends EventTarget {
  #api;
  current = '';
  /** @type {Models['models']} */
  models = [];

  /** @param {Api} api */
  constructor(api) {
    super();
    this.#api = api;
  }

  /** The model that the student learned from: the one named so. */
  get teacher() {
    return this.models.find(({ name }) => /teacher/i.test(name) && name !== this.current);
  }

  async refresh() {
    const { current, models } = await this.#api.models();
    const isSwap = this.current !== '' && current !== this.current;
    this.current = current;
    this.models = models;
    this.dispatchEvent(new Event('listed'));
    if (isSwap) this.dispatchEvent(new Event('swapped'));
  }

  /** @param {string} name */
  async load(name) {
    await this.#api.loadModel(name);
    await this.refresh();
  }

  /** @param {string} name */
  async promote(name) {
    await this.#api.promoteModel(name);
    await this.refresh();
  }

  async rollBack() {
    await this.#api.rollBackModel();
    await this.refresh();
  }
}
