/**
 * The models that the service answers with: one current, and others that requests name. A model is loaded and tried
 * before anything refers to it, put in place by one assignment, and disposed of when nothing can be using it any more.
 */
import { LimbeckError } from '../errors.js';
import type { Student } from '../recommend/student.js';
import { HttpError } from './http-error.js';

/** Where models come from: a registry, or one student directory. */
export interface ModelSource {
  list(): Promise<readonly string[]>;
  /** Name of the one to start with. */
  current(): Promise<string>;
  /** Opens it whole, or throws. */
  load(name: string): Promise<Student>;
  /** Makes it the one to start with. */
  promote(name: string): Promise<void>;
  /** Makes the one before it the one to start with, and names it. */
  rollback(): Promise<string>;
  /** Gives up what it keeps for loading. */
  close?(): Promise<void>;
}

export interface ServedModel {
  readonly name: string;
  readonly student: Student;
}

export interface ModelHostOptions {
  /** Models in memory besides the current one; the one that was loaded first makes place. */
  readonly maxExtraModels: number;
  /** Done to a student before it serves: what changed in the catalogue since it was made. */
  readonly prepare: (student: Student) => Promise<void>;
}

/** Changes that wait for their turn; more are refused. */
const MAX_WAITING = 32;
const TRIAL_REQUESTS = 20;

export class ModelHost {
  readonly #source: ModelSource;
  readonly #options: ModelHostOptions;
  #current: ServedModel;
  readonly #extra = new Map<string, ServedModel>();
  /** What another process promoted and this one cannot serve: not opened again before anything else is promoted. */
  #refused: string | undefined;
  /** Changes happen one after the other. */
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  /** @throws LimbeckError whatever loading throws */
  static async open(source: ModelSource, options: ModelHostOptions): Promise<ModelHost> {
    try {
      const name = await source.current();
      return new ModelHost(source, options, await loadModel(source, name, options));
    } catch (error) {
      await source.close?.();
      throw error;
    }
  }

  private constructor(source: ModelSource, options: ModelHostOptions, current: ServedModel) {
    this.#source = source;
    this.#options = options;
    this.#current = current;
  }

  get current(): ServedModel {
    return this.#current;
  }

  /** Current one first. */
  get loaded(): readonly ServedModel[] {
    return [this.#current, ...this.#extra.values()];
  }

  /**
   * A loaded model by its name. Use it before the next `await`: it may be gone afterwards.
   *
   * @throws HttpError 404
   */
  get(name: string | undefined): ServedModel {
    if (name === undefined || name === this.#current.name) return this.#current;
    const model = this.#extra.get(name);
    if (model === undefined) {
      throw new HttpError(404, 'ERR_NOT_FOUND', `No model '${name}' is loaded; POST /v1/models/load loads one.`);
    }
    return model;
  }

  /** Name of the one to start with, which another process may have promoted just now, or which was refused here. */
  promoted(): Promise<string> {
    return this.#source.current();
  }

  async list(): Promise<{ name: string; loaded: boolean; numItems?: number }[]> {
    const names = new Set([...(await this.#source.list()), ...this.loaded.map(({ name }) => name)]);
    return [...names].map((name) => {
      const model = this.loaded.find((one) => one.name === name);
      return { name, loaded: model !== undefined, ...(model && { numItems: model.student.numItems }) };
    });
  }

  /** Opens a model beside the current one. @throws HttpError 404, 409, 422 */
  load(name: string): Promise<ServedModel> {
    return this.exclusively(async () => {
      if (name === this.#current.name) return this.#current;
      const model = await this.#open(name);
      this.#dispose(this.#extra.get(name));
      this.#extra.delete(name);
      this.#extra.set(name, model);
      for (const [oldest, dropped] of this.#extra) {
        if (this.#extra.size <= this.#options.maxExtraModels) break;
        this.#extra.delete(oldest);
        this.#dispose(dropped);
      }
      return model;
    });
  }

  /** Answers with a model from now on, and after a restart. @throws HttpError 404, 409, 422: the current one stays */
  promote(name: string): Promise<ServedModel> {
    return this.exclusively(async () => {
      const model = this.#extra.get(name) ?? (await this.#open(name));
      try {
        await this.#source.promote(name);
      } catch (error) {
        if (this.#extra.get(name) !== model) this.#dispose(model);
        throw refusal(name, error);
      }
      this.#replace(model);
      return model;
    });
  }

  /**
   * Answers with what another process has made current.
   *
   * @returns it, or undefined when there is nothing new
   * @throws HttpError 404, 422, once for each model: the current one stays
   */
  async refresh(): Promise<ServedModel | undefined> {
    // Looks come often, and must not wait behind a change that takes long.
    if (this.#waiting > 0) return undefined;
    return this.exclusively(async () => {
      const name = await this.#source.current();
      if (name === this.#refused) return undefined;
      this.#refused = undefined;
      if (name === this.#current.name) return undefined;
      try {
        const model = this.#extra.get(name) ?? (await this.#open(name));
        this.#replace(model);
        return model;
      } catch (error) {
        this.#refused = name;
        throw error;
      }
    });
  }

  /**
   * Answers with the model before the current one.
   *
   * @throws HttpError 409 when there is none, or when the current one is not what this service answers with: what was
   * before it is not what the caller means
   */
  rollback(): Promise<ServedModel> {
    return this.exclusively(async () => {
      const before = this.#current.name;
      const promoted = await this.#source.current();
      if (promoted !== before) {
        const message =
          `The registry's current model is '${promoted}', and '${before}' is served: ` +
          'promote the one that is to be served (POST /v1/models/promote), or wait until it is.';
        throw new HttpError(409, 'ERR_CONFLICT', message);
      }
      const name = await this.#source.rollback().catch((error: unknown) => {
        throw refusal('before this one', error);
      });
      try {
        const model = this.#extra.get(name) ?? (await this.#open(name));
        this.#replace(model);
        return model;
      } catch (error) {
        await this.#source.promote(before);
        throw error;
      }
    });
  }

  /** Runs a change while no other does, and while no model goes away. @throws HttpError 409 when too many wait */
  async exclusively<T>(change: () => Promise<T>): Promise<T> {
    if (this.#waiting >= MAX_WAITING) throw new HttpError(409, 'ERR_CONFLICT', 'Too many changes wait for their turn.');
    this.#waiting++;
    const turn = this.#last.then(change).finally(() => this.#waiting--);
    // The next one begins whatever came of this one; the caller hears of it.
    this.#last = turn.catch(() => undefined);
    return turn;
  }

  async close(): Promise<void> {
    await this.#last;
    await this.#source.close?.();
    for (const { student } of this.loaded) student.dispose();
  }

  async #open(name: string): Promise<ServedModel> {
    if (!(await this.#source.list()).includes(name)) {
      throw new HttpError(404, 'ERR_NOT_FOUND', `There is no model '${name}'.`);
    }
    try {
      return await loadModel(this.#source, name, this.#options);
    } catch (error) {
      throw refusal(name, error);
    }
  }

  #replace(model: ServedModel): void {
    const before = this.#current;
    this.#extra.delete(model.name);
    this.#current = model;
    if (before !== model) this.#dispose(before);
  }

  /** Answers are made without an `await` between looking a model up and using it, so after this turn no one has it. */
  #dispose(model: ServedModel | undefined): void {
    if (model !== undefined) setImmediate(() => model.student.dispose());
  }
}

async function loadModel(source: ModelSource, name: string, options: ModelHostOptions): Promise<ServedModel> {
  const student = await source.load(name);
  try {
    await options.prepare(student);
    await tryOut(student);
    return { name, student };
  } catch (error) {
    student.dispose();
    throw error;
  }
}

/** Some real requests: they bring the weights into the caches, and show a model that answers with no numbers. */
async function tryOut(student: Student): Promise<void> {
  const { items, numItems } = student;
  for (let i = 0; i < TRIAL_REQUESTS; i++) {
    const item = items[Math.floor((i * items.length) / TRIAL_REQUESTS)];
    if (item === undefined || student.indexOf(item.id) === undefined) continue;
    const { items: answer } = student.recommend({ history: [item.id], k: Math.min(10, numItems) });
    if (answer.some(({ score }) => !Number.isFinite(score))) {
      throw new LimbeckError('ERR_NOT_FINITE', 'The model scores items with values that are not finite');
    }
    // Finds its topics, where they are not known yet: the first request must not wait for that.
    if (i === 0) student.interests([item.id], { k: 1 });
    await new Promise(setImmediate);
  }
}

/** What the machine lacks is not the model's fault. */
const OF_THE_MACHINE: ReadonlySet<string> = new Set(['ERR_NO_SPACE', 'ERR_IO', 'ERR_OUT_OF_MEMORY']);

/** The reason without the paths; the log has the whole. */
function refusal(name: string, error: unknown): unknown {
  if (!(error instanceof LimbeckError) || OF_THE_MACHINE.has(error.code)) return error;
  const message = `The model '${name}' was refused (${error.code}); the current one keeps serving.`;
  return new HttpError(422, 'ERR_MODEL_REFUSED', message, undefined, { cause: error });
}
