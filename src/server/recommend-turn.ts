/**
 * Recommendations are answered together: requests that came in one turn of the event loop search the catalogue at once,
 * and their answers leave one behind the other, which wakes the clients once and not for each. Where there are several,
 * another thread searches while this one reads what comes next and sends what is done.
 */
import { availableParallelism } from 'node:os';
import type { Recommendation } from '../recommend/answers.js';
import type { HistoryRequest } from '../recommend/request.js';
import type { Student } from '../recommend/student.js';
import type { ServedModel } from './model-host.js';
import {
  finish,
  finishText,
  type ReceivedRequest,
  type RecommendContext,
  type RecommendTask,
  taskOf,
} from './recommend-task.js';
import type * as schemas from './schemas.js';

/** Weight of the last answers, where they were many, in what a request is expected to take. */
const NEW_COST = 0.1;
/** Fewer requests are answered sooner than another thread wakes up. */
const MIN_ASIDE = 4;
/** So many share one search of the catalogue: with more, none would take much less. */
const FULL_BATCH = 8;
/** So many batches the other thread may have before it, full ones and others. Meanwhile what comes waits together. */
const MAX_FULL_ASIDE = 4;
const MAX_ASIDE = 2;
/** Another thread helps where another processor is there for it. */
const HAS_ASIDE = availableParallelism() > 1;

export class RecommendTurn {
  readonly #context: RecommendContext;
  #waiting: ReceivedRequest[] = [];
  /** Batches, and requests, that the other thread has before it. */
  #batchesAside = 0;
  #requestsAside = 0;
  /** What a request takes where many are answered together: its answer, and sending it, ms. */
  #expectedMs = 0;
  /** When answers were sent last, ms; of those that are not sent yet, how many, and since when they were worked on. */
  #lastSent = 0;
  #numAnswered = 0;
  #answeringSince = 0;
  readonly #endTurn = () => {
    if (this.#waiting.length === 0) return;
    const isSoon = this.#batchesAside === 0 && this.#waiting.length < MIN_ASIDE;
    if (isSoon || !HAS_ASIDE) this.#answer();
    else if (this.#batchesAside < MAX_ASIDE) void this.#answerAside();
  };
  /** Comes when answers are sent. */
  readonly #afterSending = () => {
    if (this.#numAnswered === 0) return;
    this.#lastSent = performance.now();
    // Of a few, each takes longer: more of it is a thread that wakes up.
    if (this.#numAnswered >= FULL_BATCH) {
      const eachMs = (this.#lastSent - this.#answeringSince) / this.#numAnswered;
      this.#expectedMs += NEW_COST * (eachMs - this.#expectedMs);
    }
    this.#numAnswered = 0;
  };

  constructor(context: RecommendContext) {
    this.#context = context;
  }

  /** What the requests that were let in will take, as far as it is known, ms. */
  get owedMs(): number {
    return (this.#waiting.length + this.#requestsAside) * this.#expectedMs;
  }

  /** @param bytes of the body, in JSON @returns the answer, or its JSON */
  answer(bytes: Buffer, requestId: string): Promise<schemas.RecommendAnswer | string> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.length === 0) setImmediate(this.#endTurn);
      this.#waiting.push({ bytes, requestId, start: performance.now(), resolve, reject });
      const isFull = this.#waiting.length >= FULL_BATCH;
      if (isFull && HAS_ASIDE && this.#batchesAside < MAX_FULL_ASIDE) void this.#answerAside();
    });
  }

  /** Answers what waits. */
  #answer(): void {
    const received = this.#takeWaiting();
    const start = performance.now();
    const model = this.#context.models.current;
    const rows = new Int32Array(received.length);
    try {
      finishTexts(received, rows, model, model.student.answerTexts(received.map(bytesOf), rows));
    } catch (error) {
      rejectAll(received, error);
      return;
    }
    for (const [student, tasks] of this.#tasksOf(received.filter((_, i) => rows[i] === -1))) {
      try {
        this.#finishAll(tasks, student.recommendAll(tasks.map(requestOf)));
      } catch (error) {
        rejectAll(tasks.map(receivedOf), error);
      }
    }
    this.#takeNote(start, received.length);
  }

  /** Has another thread search for what waits, and answers when that is done. */
  async #answerAside(): Promise<void> {
    const received = this.#takeWaiting();
    const start = performance.now();
    this.#batchesAside++;
    this.#requestsAside += received.length;
    const model = this.#context.models.current;
    const rows = new Int32Array(received.length);
    const texts = model.student.answerTextsAside(received.map(bytesOf), rows).then(
      (answers) => finishTexts(received, rows, model, answers),
      (error) => {
        const others = received.filter((_, i) => rows[i] !== -1);
        // The scores of one overflow: each is answered by itself.
        if (error.code === 'ERR_NOT_FINITE') return this.#searchAside(this.#tasksOf(others));
        rejectAll(others, error);
      },
    );
    await Promise.all([texts, this.#searchAside(this.#tasksOf(received.filter((_, i) => rows[i] === -1)))]);
    this.#batchesAside--;
    this.#requestsAside -= received.length;
    this.#takeNote(start, received.length);
    this.#endTurn();
  }

  async #searchAside(byStudent: ReadonlyMap<Student, RecommendTask[]>): Promise<void> {
    const searches = [...byStudent].map(([student, tasks]) =>
      student.answerAllAside(tasks.map(requestOf)).then(
        (answers) => this.#finishAll(tasks, answers),
        (error) => rejectAll(tasks.map(receivedOf), error),
      ),
    );
    await Promise.all(searches);
  }

  #takeWaiting(): readonly ReceivedRequest[] {
    const waiting = this.#waiting;
    this.#waiting = [];
    return waiting;
  }

  /** What is to be asked of each student; what needs none is answered. */
  #tasksOf(received: readonly ReceivedRequest[]): Map<Student, RecommendTask[]> {
    const byStudent = new Map<Student, RecommendTask[]>();
    for (const one of received) {
      try {
        const task = taskOf(this.#context, one);
        const { student } = task.model;
        const others = byStudent.get(student);
        if (task.isPopular) finish(this.#context, task, undefined);
        else if (others === undefined) byStudent.set(student, [task]);
        else others.push(task);
      } catch (error) {
        one.reject(error);
      }
    }
    return byStudent;
  }

  #finishAll(tasks: readonly RecommendTask[], answers: readonly (string | Recommendation | Error)[]): void {
    for (let i = 0; i < tasks.length; i++) finish(this.#context, tasks[i] as RecommendTask, answers[i]);
  }

  /** Notes what requests took that were answered and will now be sent. */
  #takeNote(start: number, numRequests: number): void {
    // What waited for the answers before took no time of its own.
    const begin = Math.max(start, this.#lastSent);
    const eachMs = (performance.now() - begin) / numRequests;
    for (let i = 0; i < numRequests; i++) this.#context.metrics.observeRecommend(eachMs / 1000);
    if (this.#numAnswered === 0) {
      this.#answeringSince = begin;
      setImmediate(this.#afterSending);
    }
    this.#numAnswered += numRequests;
  }
}

function bytesOf({ bytes }: ReceivedRequest): Buffer {
  return bytes;
}

function requestOf({ request }: RecommendTask): HistoryRequest {
  return request;
}

function receivedOf({ received }: RecommendTask): ReceivedRequest {
  return received;
}

function finishTexts(
  received: readonly ReceivedRequest[],
  rows: Int32Array,
  model: ServedModel,
  texts: readonly string[],
): void {
  for (let i = 0; i < received.length; i++) {
    const text = texts[rows[i] ?? -1];
    if (text !== undefined) finishText(received[i] as ReceivedRequest, model, text);
  }
}

function rejectAll(received: readonly ReceivedRequest[], error: unknown): void {
  for (const { reject } of received) reject(error);
}
