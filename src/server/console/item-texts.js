/** @import { Api, CatalogueItem } from './api.js' */

/** Requests at a time, so that a long history does not take the service from its users. */
const PARALLEL = 4;

/** What items are called. Answers bring texts along; those of a history are asked for. */
export class ItemTexts {
  #api;
  /** @type {Map<string, string>} */
  #texts = new Map();

  /** @param {Api} api */
  constructor(api) {
    this.#api = api;
  }

  /** @param {readonly { id: string, text?: string | undefined }[]} items */
  remember(items) {
    for (const { id, text } of items) if (text !== undefined && text !== '') this.#texts.set(id, text);
  }

  /**
   * @param {string} id
   * @returns {string} The id itself where the text is not known.
   */
  get(id) {
    return this.#texts.get(id) ?? id;
  }

  /**
   * Asks for the texts that are missing. An item that is in no catalogue any more keeps its id.
   *
   * @param {readonly string[]} ids
   */
  async load(ids) {
    const missing = [...new Set(ids)].filter((id) => !this.#texts.has(id));
    const next = async () => {
      for (let id = missing.shift(); id !== undefined; id = missing.shift()) {
        const found = await this.#api.findItems(id);
        this.remember(found);
        if (!this.#texts.has(id)) this.#texts.set(id, id);
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, next));
  }
}
