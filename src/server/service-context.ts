import type { FastifyBaseLogger } from 'fastify';
import type { Feedback } from './feedback.js';
import type { ItemChanges } from './item-changes.js';
import type { Metrics } from './metrics.js';
import type { ModelHost } from './model-host.js';

/** What the routes share. */
export interface ServiceContext {
  readonly models: ModelHost;
  /** Absent when the service was started without a data directory. */
  readonly feedback: Feedback | undefined;
  readonly itemChanges: ItemChanges;
  readonly metrics: Metrics;
  readonly log: FastifyBaseLogger;
  readonly isDraining: () => boolean;
}
