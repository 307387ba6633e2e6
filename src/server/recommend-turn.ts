/**
 * Recommendations are answered when a turn of the event loop has brought all its requests: those of many clients search
 * the catalogue together, and their answers leave one behind the other, which wakes the clients once and not for each.
 * Where there are several, another thread searches while this one reads what comes next. A request gets the model that
 * is current when its turn ends, whatever happens meanwhile.
 */
import type { z } from 'zod';
import { LimbeckError } from '../errors.js';
import type { Recommendation } from '../recommend/answers.js';
import type { History, RecommendRequest as StudentRequest } from '../recommend/request.js';
import type { Student } from '../recommend/student.js';
import { HttpError } from './http-error.js';
import type { ServedModel } from './model-host.js';
import { popularItems } from './popular-items.js';
import type * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

/** What a request asks of the model besides a history. */
type Wishes = Omit<StudentRequest, 'history'>;

interface ChosenStrategy {
  readonly name: string;
  readonly weights: Pick<StudentRequest, 'diversity' | 'novelty' | 'explore'>;
}

/** The list that users get of whom nothing is known. */
const POPULAR: ChosenStrategy = { name: 'popular', weights: { diversity: 0, novelty: 0, explore: 0 } };

type Body = z.output<typeof schemas.recommendRequest>;

/** What of the service an answer needs. */
type Context = Pick<ServiceContext, 'models' | 'feedback' | 'metrics'>;

/** A request that waits for the end of its turn. */
interface Waiting {
  readonly body: Body;
  readonly requestId: string;
  /** When it came, ms. */
  readonly start: number;
  readonly resolve: (answer: schemas.RecommendAnswer) => void;
  readonly reject: (error: unknown) => void;
}

/** A request on its way through the model. */
interface Task {
  readonly waiting: Waiting;
  readonly model: ServedModel;
  readonly options: StudentRequest & { readonly k: number };
  readonly strategy: ChosenStrategy | undefined;
}

/** Weight of the last turn in what a request is expected to take. */
const NEW_COST = 0.1;
/** Fewer are answered sooner than another thread wakes up. */
const MIN_ASIDE = 4;
/** Turns at work in the other thread: the next one is ready when it is done with one. Those that come wait together. */
const MAX_ASIDE = 2;

export class RecommendTurn {
  readonly #context: Context;
  #waiting: Waiting[] = [];
  /** Of one request: its answer, and sending it, ms. */
  #expectedMs = 0;
  /** Turns, and requests, at work in the other thread. */
  #turnsAside = 0;
  #requestsAside = 0;
  /** When the last answers were sent, ms; those that were not yet, and since when they were worked on. */
  #lastSent = 0;
  #numAnswered = 0;
  #answeringSince = 0;
  readonly #end = () => {
    if (this.#turnsAside >= MAX_ASIDE || this.#waiting.length === 0) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    const start = performance.now();
    const aside = this.#answerAll(waiting);
    if (aside === undefined) {
      this.#observe(start, waiting.length);
      return;
    }
    this.#turnsAside++;
    this.#requestsAside += waiting.length;
    void aside.then(() => {
      this.#turnsAside--;
      this.#requestsAside -= waiting.length;
      this.#observe(start, waiting.length);
      this.#end();
      setImmediate(this.#afterSending);
    });
  };
  /** Comes when answers are sent. */
  readonly #afterSending = () => {
    if (this.#numAnswered === 0) return;
    this.#lastSent = performance.now();
    const eachMs = (this.#lastSent - this.#answeringSince) / this.#numAnswered;
    this.#expectedMs += NEW_COST * (eachMs - this.#expectedMs);
    this.#numAnswered = 0;
  };

  constructor(context: Context) {
    this.#context = context;
  }

  /** What the requests that were let in will take, as far as it is known, ms. */
  get owedMs(): number {
    return (this.#waiting.length + this.#requestsAside) * this.#expectedMs;
  }

  answer(body: Body, requestId: string): Promise<schemas.RecommendAnswer> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.length === 0) {
        setImmediate(this.#end);
        setImmediate(this.#afterSending);
      }
      this.#waiting.push({ body, requestId, start: performance.now(), resolve, reject });
    });
  }

  /** Takes note of what the answers of a turn took. */
  #observe(start: number, numRequests: number): void {
    // What waited for the turn before took no time of its own.
    const begin = Math.max(start, this.#lastSent);
    const eachMs = (performance.now() - begin) / numRequests;
    for (let i = 0; i < numRequests; i++) this.#context.metrics.observeRecommend(eachMs / 1000);
    if (this.#numAnswered === 0) this.#answeringSince = begin;
    this.#numAnswered += numRequests;
  }

  /** @returns what resolves when those are answered that another thread searches for; undefined when all are */
  #answerAll(waiting: readonly Waiting[]): Promise<unknown> | undefined {
    const byModel = new Map<Student, Task[]>();
    for (const one of waiting) {
      try {
        const task = this.#taskOf(one);
        const tasks = byModel.get(task.model.student);
        if (tasks === undefined) byModel.set(task.model.student, [task]);
        else tasks.push(task);
      } catch (error) {
        one.reject(error);
      }
    }
    const aside: Promise<void>[] = [];
    for (const [student, tasks] of byModel) {
      const later = this.#answerTasks(student, tasks);
      if (later !== undefined) aside.push(later);
    }
    return aside.length === 0 ? undefined : Promise.all(aside);
  }

  #taskOf(waiting: Waiting): Task {
    const { userId, history: given, model: name, texts: _, ...wishes } = waiting.body;
    const model = this.#context.models.get(name);
    const history = historyOf(this.#context, userId, given);
    const options = {
      ...wishes,
      history,
      k: Math.min(wishes.k, model.student.numItems),
      exclude: withHidden(this.#context, userId, wishes.exclude),
      // Keys that a request left out are not there, which its type cannot say.
    } as StudentRequest & { k: number };
    const strategy = chooseStrategy(this.#context, model.student, waiting.requestId, userId, options, history.length);
    return { waiting, model, options, strategy };
  }

  #answerTasks(student: Student, tasks: readonly Task[]): Promise<void> | undefined {
    const ranked = tasks.filter(({ strategy }) => strategy !== POPULAR);
    for (const task of tasks) if (task.strategy === POPULAR) this.#finish(task, undefined);
    const requests = ranked.map(({ options, strategy }) =>
      strategy === undefined ? options : { ...options, ...strategy.weights },
    );
    const rejectAll = (error: unknown) => {
      for (const { waiting } of ranked) waiting.reject(error);
    };
    try {
      return student
        .recommendAllAside(requests, MIN_ASIDE, (i, answer) => this.#finish(ranked[i] as Task, answer))
        ?.catch(rejectAll);
    } catch (error) {
      rejectAll(error);
      return undefined;
    }
  }

  #finish(task: Task, answer: Recommendation | Error | undefined): void {
    const { waiting, model, options } = task;
    const { body, requestId, start, resolve, reject } = waiting;
    try {
      let { strategy } = task;
      let recommendation = answer;
      // Everything that the user chose may have left the catalogue; a client that names items had better know.
      if (answer === undefined || (body.history === undefined && isUnknownItems(answer))) {
        strategy = POPULAR;
        recommendation = popularAnswer(this.#context, model.student, options);
      }
      if (recommendation === undefined || recommendation instanceof Error) throw recommendation;
      const { items, unknownItems } = recommendation;
      resolve({
        requestId,
        model: model.name,
        strategy: strategy?.name,
        items: body.texts === true ? withTexts(model.student, items) : items,
        unknownItems,
        latencyMs: performance.now() - start,
        // The schema's lists are mutable, the library's are not; nothing here changes them.
      } as schemas.RecommendAnswer);
    } catch (error) {
      reject(error);
    }
  }
}

/** What the request excludes, and what its user dismissed. */
function withHidden(
  { feedback }: Context,
  userId: string | undefined,
  exclude: readonly string[] = [],
): readonly string[] {
  const hidden = userId === undefined ? [] : (feedback?.hidden(userId) ?? []);
  return hidden.length === 0 ? exclude : [...exclude, ...hidden];
}

/** The service chooses how to rank for the users that it knows, unless the request says how. */
function chooseStrategy(
  { feedback }: Context,
  { hasPopularity }: Student,
  requestId: string,
  userId: string | undefined,
  { diversity, novelty, explore }: Wishes,
  historyLength: number,
): ChosenStrategy | undefined {
  if (historyLength === 0) return POPULAR;
  if (userId === undefined || feedback === undefined) return undefined;
  if (diversity !== undefined || novelty !== undefined || explore !== undefined) return undefined;
  const { name, ...weights } = feedback.chooseStrategy(requestId, historyLength);
  // A student that does not know how popular its items are cannot weigh it.
  return { name, weights: hasPopularity ? weights : { ...weights, novelty: 0 } };
}

/** Popular with the users of this service; without any, what the model thinks is. */
function popularAnswer(context: Context, student: Student, options: Wishes): Recommendation {
  const items = popularItems(student, context.feedback, options);
  if (items.length > 0) return { items, unknownItems: [] };
  try {
    return student.recommend({ ...options, history: [] });
  } catch (error) {
    if (!isUnknownItems(error)) throw error;
    return { items: [], unknownItems: [] };
  }
}

function isUnknownItems(error: unknown): boolean {
  return error instanceof LimbeckError && error.code === 'ERR_UNKNOWN_ITEMS';
}

/** The history that a request brings, or that of the user that it names. */
export function historyOf({ feedback }: Context, userId: string | undefined, given: History | undefined): History {
  if (given !== undefined) return given;
  if (userId === undefined) throw new HttpError(400, 'ERR_INVALID_ARGUMENT', 'Give a userId or a history.');
  return feedback?.history(userId) ?? [];
}

export function withTexts<Item extends { readonly id: string; readonly score: number }>(
  student: Student,
  items: readonly Item[],
): (Item & { text: string })[] {
  return items.map((item) => ({ ...item, text: student.items[student.indexOf(item.id) ?? -1]?.text ?? '' }));
}
