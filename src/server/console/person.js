/** @import { Api, EventType } from './api.js' */

/** A rating below it hides the item. */
const LOWEST_LIKED_RATING = 3;

/**
 * Whose recommendations are shown: a user of the service, or a guest whose history is in this page alone. Sends
 * `opened` when it is another person, `changed` when they did something.
 */
export class Person extends EventTarget {
  #api;
  #opening = 0;
  /** Empty for a guest. */
  userId = '';
  /** Ids, oldest first. @type {string[]} */
  history = [];
  /** Ids that are not to be shown. @type {string[]} */
  hidden = [];

  /** @param {Api} api */
  constructor(api) {
    super();
    this.#api = api;
  }

  get isGuest() {
    return this.userId === '';
  }

  /** What a request says of them. */
  get request() {
    return this.isGuest ? { history: this.history, exclude: this.hidden } : { userId: this.userId };
  }

  /**
   * @param {string} userId Empty for a guest without a history.
   * @throws {ApiError} The person stays who they were.
   */
  async open(userId) {
    const turn = ++this.#opening;
    const known = userId === '' ? { history: [], hidden: [] } : await this.#api.user(userId);
    if (turn !== this.#opening) return;
    this.userId = userId;
    this.#know(known);
    this.dispatchEvent(new Event('opened'));
  }

  /**
   * @param {string} itemId
   * @param {EventType} type
   * @param {{ value?: number | undefined, requestId?: string | undefined, strategy?: string | undefined }} [details]
   * `requestId` and `strategy` of the answer that showed the item.
   */
  async record(itemId, type, details = {}) {
    if (this.isGuest) {
      this.#actAsGuest(itemId, type, details.value);
    } else {
      const { userId } = this;
      await this.#api.sendEvents([{ id: randomId(), userId, itemId, type, ...details }]);
      const known = await this.#api.user(userId);
      if (userId !== this.userId) return;
      this.#know(known);
    }
    this.dispatchEvent(new Event('changed'));
  }

  /** @param {{ history: string[], hidden: string[] }} known */
  #know({ history, hidden }) {
    this.history = history;
    this.hidden = hidden;
  }

  /**
   * As the service would: what is hidden leaves the history, and a look at it does not bring it back.
   *
   * @param {string} itemId
   * @param {EventType} type
   * @param {number} [value]
   */
  #actAsGuest(itemId, type, value) {
    const isDisliked = type === 'dismiss' || (type === 'rating' && (value ?? 0) < LOWEST_LIKED_RATING);
    if (type === 'view' && this.hidden.includes(itemId)) return;
    this.hidden = this.hidden.filter((id) => id !== itemId);
    if (isDisliked) {
      this.hidden = [...this.hidden, itemId];
      const others = this.history.filter((id) => id !== itemId);
      this.history = others.filter((id, i) => id !== others[i - 1]);
    } else if (this.history.at(-1) !== itemId) {
      this.history = [...this.history, itemId];
    }
  }
}

/** `crypto.randomUUID` is for secure origins alone; consoles are opened over plain HTTP in private networks too. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
