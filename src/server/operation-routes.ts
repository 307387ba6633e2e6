/** Routes for supervisors. */
import { z } from 'zod';
import { defineRoute, type Route } from './route.js';
import * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

export function operationRoutes({ metrics, feedback, isDraining }: ServiceContext): Route[] {
  return [
    defineRoute(
      {
        method: 'GET',
        url: '/healthz',
        summary: 'Whether the process answers',
        scope: null,
        answer: schemas.healthAnswer,
      },
      () => ({ status: 'ok' as const }),
    ),
    defineRoute(
      {
        method: 'GET',
        url: '/readyz',
        summary:
          'Whether requests are welcome: a model is loaded, the event log has not failed, and the service is not closing',
        scope: null,
        answer: schemas.healthAnswer,
      },
      ({ reply }) => {
        const failure = feedback?.failure;
        const reason = isDraining() ? 'the service is closing' : failure?.reason;
        // A full disk or a Redis that is away refuses events, and may not take away the recommendations.
        if (!isDraining() && failure?.isFinal !== true) return { status: 'ok' as const, ...(reason && { reason }) };
        reply.code(503).header('retry-after', '1');
        return { status: 'unavailable' as const, ...(reason && { reason }) };
      },
    ),
    {
      method: 'GET',
      url: '/metrics',
      summary: 'Metrics for Prometheus',
      scope: 'read',
      answer: z.string(),
      handler: async (_, reply) => {
        const text = await metrics.registry.metrics();
        return reply.type(metrics.registry.contentType).send(text);
      },
    },
  ];
}
