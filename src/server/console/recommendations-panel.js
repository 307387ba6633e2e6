/** @import { Api, EventType, Recommendation, ScoredItem } from './api.js' */
/** @import { ItemTexts } from './item-texts.js' */
/** @import { ModelCatalogue } from './models.js' */
/** @import { Person } from './person.js' */
import { announce } from './announce.js';
import { byId, element } from './dom.js';
import { countOf, formatMs } from './format.js';
import { problemNotice } from './problem-notice.js';
import { compareRanks, describeChanges } from './rank-changes.js';
import { RankedList } from './ranked-list.js';

const POPULARITY = ' popularity'; // no model's name begins with a space

/**
 * One list with its heading: who ranked it, and how long that took.
 *
 * @typedef {object} Column
 * @property {RankedList} list
 * @property {HTMLElement} title What it is.
 * @property {HTMLElement} facts
 * @property {HTMLElement} latency
 */

/** The student's list beside another one: the teacher's, that of a model, or what is popular. */
export class RecommendationsPanel {
  #api;
  #person;
  #models;
  #texts;
  #student;
  #other;
  #choice = byId('compare', HTMLSelectElement);
  #size = byId('size', HTMLSelectElement);
  #note = byId('compare-note', HTMLElement);
  #overlap = byId('overlap', HTMLElement);
  #asking = new AbortController();
  /** Chosen by hand; until then, the teacher where there is one. */
  #isChosen = false;

  /**
   * @param {{ api: Api, person: Person, models: ModelCatalogue, texts: ItemTexts,
   *   feedback: ConstructorParameters<typeof RankedList>[0]['feedback'], showSimilar: (item: ScoredItem) => void }} parts
   */
  constructor({ api, person, models, texts, feedback, showSimilar }) {
    this.#api = api;
    this.#person = person;
    this.#models = models;
    this.#texts = texts;
    /** @param {string} prefix @param {string} label @returns {Column} */
    const column = (prefix, label) => {
      const list = new RankedList({ label, prefix, texts, feedback, showSimilar });
      byId(`${prefix}-list`, HTMLElement).append(list.element);
      return {
        list,
        title: byId(`${prefix}-title`, HTMLElement),
        facts: byId(`${prefix}-facts`, HTMLElement),
        latency: byId(`${prefix}-latency`, HTMLElement),
      };
    };
    this.#student = column('student', 'Recommendations of the student');
    this.#other = column('other', 'Recommendations to compare with');
    this.#choice.addEventListener('change', () => {
      this.#isChosen = true;
      this.#nameOther();
      void this.refresh();
    });
    this.#size.addEventListener('change', () => void this.refresh());
    byId('refresh', HTMLButtonElement).addEventListener('click', () => void this.refresh({ highlight: true }));
    models.addEventListener('listed', () => this.#listChoices());
    this.#listChoices();
  }

  /**
   * Asks for both lists, one after the other, so that neither is in the other's time.
   *
   * @param {{ highlight?: boolean }} [options] Whether to show what changed since the last answer.
   */
  async refresh({ highlight = false } = {}) {
    this.#asking.abort();
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    for (const { list } of [this.#student, this.#other]) list.showLoading();
    const before = this.#student.list.ids;
    const k = Number(this.#size.value);
    const student = await this.#fill(this.#student, { ...this.#person.request, k }, { highlight, signal });
    if (signal.aborted) return;
    const other = await this.#fillOther(k, { highlight, signal });
    if (signal.aborted) return;
    this.#compare(student, other);
    if (student !== undefined && highlight) announce(describeChanges(compareRanks(before, this.#student.list.ids)));
  }

  /**
   * @param {number} k
   * @param {{ highlight: boolean, signal: AbortSignal }} options
   */
  #fillOther(k, options) {
    const name = this.#choice.value;
    const { request, history, hidden } = this.#person;
    if (name === POPULARITY) {
      const popular = { history: [], exclude: [...new Set([...history, ...hidden])].slice(-10_000), k };
      return this.#fill(this.#other, popular, options);
    }
    if (this.#models.models.find((model) => model.name === name)?.loaded === false) {
      this.#showUnloaded(name);
      return undefined;
    }
    return this.#fill(this.#other, { ...request, k, model: name }, options);
  }

  /**
   * @param {Column} column
   * @param {object} request
   * @param {{ highlight: boolean, signal: AbortSignal }} options
   * @returns {Promise<Recommendation | undefined>} undefined when it was not answered.
   */
  async #fill({ list, facts, latency }, request, { highlight, signal }) {
    const start = performance.now();
    try {
      const answer = await this.#api.recommend(request, signal);
      const tripMs = performance.now() - start;
      this.#texts.remember(answer.items);
      await this.#texts.load(answer.items.flatMap(({ because = [] }) => because.map(({ item }) => item)));
      if (signal.aborted) return undefined;
      latency.textContent = formatMs(answer.latencyMs);
      facts.replaceChildren(...describe(answer, tripMs));
      const { items, requestId, strategy } = answer;
      if (items.length === 0) {
        const hint =
          this.#person.history.length === 0
            ? 'Nothing is popular yet. Search for an item below, open it, and click it to begin a history.'
            : 'Nothing is left that could be recommended.';
        list.showState(element('p', { class: 'empty' }, hint));
        return answer;
      }
      const { changes } = compareRanks(
        list.ids,
        items.map(({ id }) => id),
      );
      const isComparable = highlight && list.ids.length > 0;
      list.show({
        items,
        requestId,
        hasReasons: true,
        ...(strategy !== undefined && { strategy }),
        ...(isComparable && { changes }),
      });
      return answer;
    } catch (error) {
      if (signal.aborted) return undefined;
      latency.textContent = '';
      facts.replaceChildren();
      list.showProblem(error, () => void this.refresh());
      return undefined;
    }
  }

  /** @param {string} name */
  #showUnloaded(name) {
    const { list, facts, latency } = this.#other;
    latency.textContent = '';
    facts.replaceChildren(element('code', {}, name));
    const load = async () => {
      list.showLoading();
      try {
        await this.#models.load(name);
        announce(`${name} is loaded.`);
        await this.refresh();
      } catch (error) {
        list.showState(problemNotice(error, { retry: load }));
      }
    };
    list.showState(
      element(
        'div',
        { class: 'empty' },
        element('p', {}, 'This model is not in memory yet.'),
        element('button', { type: 'button', class: 'button', click: load }, `Load ${name}`),
      ),
    );
  }

  /**
   * @param {Recommendation | undefined} student
   * @param {Recommendation | undefined} other
   */
  #compare(student, other) {
    const ids = student?.items.map(({ id }) => id) ?? [];
    const others = other?.items.map(({ id }) => id) ?? [];
    this.#student.list.markShared(new Set(others));
    this.#other.list.markShared(new Set(ids));
    if (student === undefined || other === undefined) {
      this.#overlap.textContent = '';
      return;
    }
    const shared = ids.filter((id) => others.includes(id)).length;
    const isModel = this.#choice.value !== POPULARITY;
    this.#overlap.textContent =
      `${shared} of ${countOf(ids.length, 'item')} in both lists` +
      (isModel ? ` · ${describeSpeed(other.latencyMs / student.latencyMs)}` : '');
  }

  #listChoices() {
    const { teacher, models, current } = this.#models;
    const before = this.#choice.value;
    const others = models.filter(({ name }) => name !== current);
    const option = (/** @type {string} */ value, /** @type {string} */ label) => element('option', { value }, label);
    this.#choice.replaceChildren(
      ...others.map(({ name, loaded }) => option(name, loaded === false ? `${name} (not loaded)` : name)),
      option(POPULARITY, 'Popularity'),
    );
    const isThere = others.some(({ name }) => name === before) || before === POPULARITY;
    this.#choice.value = this.#isChosen && isThere ? before : (teacher?.name ?? POPULARITY);
    this.#note.hidden = teacher !== undefined || current === '';
    this.#note.textContent =
      'This service has no model named as a teacher. ' +
      'The student stands beside what is popular, or beside another model of the list.';
    this.#nameOther();
  }

  #nameOther() {
    const { value } = this.#choice;
    this.#other.title.textContent =
      value === POPULARITY ? 'Popularity' : value === this.#models.teacher?.name ? 'Teacher' : 'Other model';
  }
}

/** @param {number} ratio Time of the other answer by that of the student's. */
function describeSpeed(ratio) {
  if (ratio > 1.1) return `the student answers ${ratio >= 10 ? Math.round(ratio) : ratio.toFixed(1)} times as fast`;
  if (ratio < 0.9) return `the student takes ${(1 / ratio).toFixed(1)} times as long`;
  return 'both take as long';
}

/**
 * @param {Recommendation} answer
 * @param {number} tripMs
 */
function describe({ model, strategy, unknownItems }, tripMs) {
  const facts = [element('code', {}, model), element('span', {}, `${formatMs(tripMs)} round trip`)];
  if (strategy !== undefined) facts.push(element('span', { class: 'tag' }, strategy));
  if (unknownItems.length > 0) {
    const title = unknownItems.slice(0, 20).join(', ');
    facts.push(
      element('span', { class: 'tag warn', title }, `${countOf(unknownItems.length, 'item')} of the history unknown`),
    );
  }
  return facts;
}
