/** Routes that store what users did, and tell what is known of them. */
import type { FeedbackEvent } from '../feedback/event.js';
import type { Feedback } from './feedback.js';
import { HttpError } from './http-error.js';
import { defineRoute, type Route } from './route.js';
import * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

export function feedbackRoutes({ feedback, metrics }: ServiceContext): Route[] {
  return [
    defineRoute(
      {
        method: 'POST',
        url: '/v1/events',
        summary: 'Stores what users did; durable when it is answered, and known to the next request',
        scope: 'write',
        body: schemas.eventsRequest,
        answer: schemas.eventsAnswer,
        errors: [507],
        waits: true,
      },
      async ({ body }) => {
        const start = performance.now();
        const { accepted, duplicates } = await opened(feedback).append(body.events as FeedbackEvent[]);
        metrics.countEvents(accepted, duplicates, (performance.now() - start) / 1000);
        return { accepted, duplicates };
      },
    ),
    defineRoute(
      {
        method: 'GET',
        url: '/v1/users/:id',
        summary: 'What is known of a user; empty lists for a user of whom nothing is',
        scope: 'read',
        params: schemas.userParams,
        answer: schemas.userAnswer,
      },
      ({ params: { id } }) => {
        const known = opened(feedback);
        return { userId: id, history: [...known.history(id)], hidden: [...known.hidden(id)] };
      },
    ),
  ];
}

function opened(feedback: Feedback | undefined): Feedback {
  if (feedback !== undefined) return feedback;
  throw new HttpError(503, 'ERR_UNAVAILABLE', 'The service was started without a data directory: it keeps no events.');
}
