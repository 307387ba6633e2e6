/** Routes that answer from the model. */
import { HttpError } from './http-error.js';
import { historyOf, withTexts } from './recommend-task.js';
import type { RecommendTurn } from './recommend-turn.js';
import { defineRoute, type Route } from './route.js';
import * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

export function recommendRoutes(context: ServiceContext, turn: RecommendTurn): Route[] {
  const { models } = context;
  return [
    {
      method: 'POST',
      url: '/v1/recommend',
      summary: 'The best items for a user, or after a history',
      scope: 'read',
      body: schemas.recommendRequest,
      takesBytes: true,
      answer: schemas.recommendAnswer,
      errors: [404, 422],
      handler: ({ body, id }, reply) => {
        reply.type('application/json; charset=utf-8');
        // No body is an empty one.
        return turn.answer((body as Buffer | undefined) ?? Buffer.alloc(0), id);
      },
    },
    defineRoute(
      {
        method: 'POST',
        url: '/v1/similar',
        summary: 'Items like one item',
        scope: 'read',
        body: schemas.similarRequest,
        answer: schemas.itemsAnswer,
        errors: [404],
      },
      ({ body: { item, ...options } }) => {
        const { student } = models.current;
        if (student.indexOf(item) === undefined)
          throw new HttpError(404, 'ERR_NOT_FOUND', `There is no item '${item}'.`);
        const items = student.similar(item, { ...options, k: Math.min(options.k, student.numItems) });
        return { items: withTexts(student, items) };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/search',
        summary: 'Items that a text asks for, by meaning; nearer to the taste of a user, where there is one',
        scope: 'read',
        body: schemas.searchRequest,
        answer: schemas.itemsAnswer,
        errors: [422],
      },
      ({ body: { text, userId, history: given, ...options } }) => {
        const { student } = models.current;
        const history = userId === undefined && given === undefined ? [] : historyOf(context, userId, given);
        const k = Math.min(options.k, student.numItems);
        const items = student.search(text, { ...options, k, ...(history.length > 0 && { history }) });
        return { items: withTexts(student, items) };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/interests',
        summary: 'What a history tells of its user',
        scope: 'read',
        body: schemas.interestsRequest,
        answer: schemas.interestsAnswer,
        errors: [422],
      },
      ({ body: { userId, history: given, k } }) => {
        const history = historyOf(context, userId, given);
        const interests = history.length === 0 ? [] : models.current.student.interests(history, { k });
        return { interests } as schemas.InterestsAnswer;
      },
    ),
  ];
}
