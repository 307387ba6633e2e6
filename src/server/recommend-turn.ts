/**
 * Recommendations are answered when a turn of the event loop has brought all its requests: those of many clients search
 * the catalogue together, and their answers leave one behind the other, which wakes the clients once and not for each.
 * Within the answer nothing is waited for, so a model is never swapped under a request.
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
  readonly history: History;
  readonly options: Wishes & { readonly k: number };
  readonly strategy: ChosenStrategy | undefined;
}

/** Weight of the last turn in what a request is expected to take. */
const NEW_COST = 0.1;

export class RecommendTurn {
  readonly #context: Context;
  #waiting: Waiting[] = [];
  /** Of one request: its answer, and sending it, ms. */
  #expectedMs = 0;
  #endStart = 0;
  #numAnswered = 0;
  readonly #end = () => {
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#numAnswered = waiting.length;
    this.#endStart = performance.now();
    this.#answerAll(waiting);
    const eachMs = (performance.now() - this.#endStart) / waiting.length;
    for (let i = 0; i < waiting.length; i++) this.#context.metrics.observeRecommend(eachMs / 1000);
  };
  /** Comes when the answers are sent. */
  readonly #afterEnd = () => {
    const eachMs = (performance.now() - this.#endStart) / this.#numAnswered;
    this.#expectedMs += NEW_COST * (eachMs - this.#expectedMs);
  };

  constructor(context: Context) {
    this.#context = context;
  }

  /** What the end of this turn will take, as far as it is known, ms. */
  get owedMs(): number {
    return this.#waiting.length * this.#expectedMs;
  }

  answer(body: Body, requestId: string): Promise<schemas.RecommendAnswer> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.length === 0) {
        setImmediate(this.#end);
        setImmediate(this.#afterEnd);
      }
      this.#waiting.push({ body, requestId, start: performance.now(), resolve, reject });
    });
  }

  #answerAll(waiting: readonly Waiting[]): void {
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
    for (const [student, tasks] of byModel) this.#answerTasks(student, tasks);
  }

  #taskOf(waiting: Waiting): Task {
    const { userId, history: given, model: name, texts: _, ...wishes } = waiting.body;
    const model = this.#context.models.get(name);
    const history = historyOf(this.#context, userId, given);
    // Keys that a request left out are not there, which its type cannot say.
    const options = wishes as Wishes & { k: number; exclude: readonly string[] };
    options.k = Math.min(options.k, model.student.numItems);
    options.exclude = withHidden(this.#context, userId, wishes.exclude);
    const strategy = chooseStrategy(this.#context, model.student, waiting.requestId, userId, options, history.length);
    return { waiting, model, history, options, strategy };
  }

  #answerTasks(student: Student, tasks: readonly Task[]): void {
    const ranked = tasks.filter(({ strategy }) => strategy !== POPULAR);
    const requests = ranked.map(({ history, options, strategy }) => ({ ...options, ...strategy?.weights, history }));
    let answers: (Recommendation | Error)[];
    try {
      answers = student.recommendAll(requests);
    } catch (error) {
      for (const { waiting } of tasks) waiting.reject(error);
      return;
    }
    ranked.forEach((task, i) => {
      this.#finish(task, answers[i]);
    });
    for (const task of tasks) if (task.strategy === POPULAR) this.#finish(task, undefined);
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
