/** The HTTP service: a student, what its users do, and the guards around both. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { FastifyInstance } from 'fastify';
import { createEngine, type Engine, LimbeckError } from '../index.js';
import { ApiKeys } from './api-keys.js';
import { catalogueRoutes } from './catalogue-routes.js';
import { Drain } from './drain.js';
import { Feedback } from './feedback.js';
import { feedbackRoutes } from './feedback-routes.js';
import { createHttpApp, type LogDestination } from './http-app.js';
import { HttpError } from './http-error.js';
import { ItemChanges } from './item-changes.js';
import { Metrics } from './metrics.js';
import { ModelHost } from './model-host.js';
import { openModelSource } from './model-sources.js';
import { openApiOf } from './openapi.js';
import { operationRoutes } from './operation-routes.js';
import { parseServerOptions, type ServerOptions, type ServerSettings } from './options.js';
import { recommendRoutes } from './recommend-routes.js';
import { RecommendTurn } from './recommend-turn.js';
import { registerRoute } from './route.js';
import type { ServiceContext } from './service-context.js';
import { readStaticFiles, registerStaticFiles } from './static-files.js';
import { WaitingLimit } from './waiting-limit.js';

export type { ServerOptions } from './options.js';

const OWN_CONSOLE = fileURLToPath(new URL('./console/', import.meta.url));
const PACKAGE = new URL('../../package.json', import.meta.url);

export interface LimbeckServer {
  /** To add routes and hooks of one's own before {@link listen}. */
  readonly app: FastifyInstance;
  /**
   * Starts to accept requests. @returns the service's URL
   *
   * @throws LimbeckError ERR_IO when the port is taken, ERR_INVALID_ARGUMENT for an address that this machine does not have
   */
  listen(): Promise<string>;
  /**
   * Ends in order: `/readyz` says no, requests are answered for a while longer, those at work are finished, what was
   * learned is saved. Later calls wait for the same end.
   *
   * @returns whether every request was finished in time
   */
  close(): Promise<boolean>;
}

/**
 * Opens a student, its events and its routes. `engine` and `log` are the caller's to give, for tests and embedding.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT (also for an address that others reach, without keys), ERR_UNKNOWN_OPTION,
 * ERR_LOCKED when another process has the data directory open, and the codes of loadStudent
 */
export async function createServer(
  options: ServerOptions,
  context: { readonly engine?: Engine; readonly log?: LogDestination } = {},
): Promise<LimbeckServer> {
  const settings = parseServerOptions(options);
  const closers: (() => unknown)[] = [];
  /** Last opened, first closed. */
  const closeAll = async () => {
    const failures: unknown[] = [];
    for (const close of closers.splice(0).reverse()) {
      try {
        await close();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  };
  try {
    const keys = settings.keys === undefined ? undefined : await ApiKeys.open(settings.keys);
    const engine = context.engine ?? (await createEngine({ device: 'cpu', threads: 1 }));
    if (context.engine === undefined) closers.push(() => engine.dispose());
    const drain = new Drain(settings.timeouts);
    let reportError: (error: unknown) => void = () => {};
    const feedback = await openFeedback(settings, (error) => reportError(error));
    if (feedback !== undefined) closers.push(() => feedback.close());
    const itemChanges = await ItemChanges.open(settings.data && join(settings.data, 'item-changes.json'));
    const models = await ModelHost.open(await openModelSource(engine, settings.student), {
      maxExtraModels: settings.limits.extraModels,
      prepare: (student) => itemChanges.applyTo(student),
    });
    closers.push(() => models.close());
    const isDraining = () => drain.isDraining;
    const metrics = new Metrics({
      users: () => feedback?.numUsers ?? 0,
      items: () => models.current.student.numItems,
      model: () => models.current.name,
      isReady: () => !drain.isDraining && feedback?.failure?.isFinal !== true,
    });
    const turn = new RecommendTurn({ models, feedback, metrics });
    const owedMs = () => turn.owedMs;
    const page = settings.console === false ? new Map() : await readStaticFiles(settings.console ?? OWN_CONSOLE);
    const app = await createHttpApp(settings, {
      keys,
      metrics,
      drain,
      owedMs,
      pagePaths: [...page.keys()],
      ...(context.log && { log: context.log }),
    });
    reportError = (error) => app.log.error({ err: error }, 'feedback');
    const service: ServiceContext = { models, feedback, itemChanges, metrics, log: app.log, isDraining };
    const routes = [
      ...recommendRoutes(service, turn),
      ...feedbackRoutes(service),
      ...catalogueRoutes(service),
      ...operationRoutes(service),
    ];
    const waiting = new WaitingLimit(settings.limits.waiting, () => metrics.countShed('waiting'));
    for (const route of routes) registerRoute(app, route, waiting);
    const { version } = JSON.parse(readFileSync(PACKAGE, 'utf8')) as { version: string };
    const openApi = JSON.stringify(openApiOf(routes, version));
    app.get('/openapi.json', (_, reply) => reply.type('application/json; charset=utf-8').send(openApi));
    registerStaticFiles(app, page);
    const { saveEveryMs, refreshKeysEveryMs, refreshModelsEveryMs } = settings.timeouts;
    if (feedback !== undefined) closers.push(every(saveEveryMs, () => feedback.save(), reportError));
    if (keys !== undefined) {
      const refresh = async () => {
        if (await keys.refresh()) app.log.info({ keys: keys.size }, 'keys changed');
      };
      closers.push(every(refreshKeysEveryMs, refresh, (error) => app.log.error({ err: error }, 'keys stay')));
    }
    const follow = async () => {
      const model = await models.refresh();
      if (model === undefined) return;
      metrics.countModelChange('promoted');
      app.log.info({ model: model.name, result: 'promoted' }, 'model of another process');
    };
    const stay = (error: unknown) => {
      const isRefused = error instanceof HttpError;
      if (isRefused) metrics.countModelChange('refused');
      app.log.warn({ err: error }, isRefused ? 'model refused' : 'registry not read: the model stays');
    };
    closers.push(every(refreshModelsEveryMs, follow, stay));
    closers.push(() => metrics.registry.clear());
    let closing: Promise<boolean> | undefined;
    return {
      app,
      async listen() {
        try {
          return await app.listen({ host: settings.host, port: settings.port });
        } catch (error) {
          throw listenError(error as NodeJS.ErrnoException, settings);
        }
      },
      close() {
        closing ??= drain.run(app).finally(closeAll);
        return closing;
      },
    };
  } catch (error) {
    // Why it cannot serve is what the caller must hear; what fails besides, while all is closed again, is told apart.
    await closeAll().catch((failure: Error) => process.emitWarning(failure));
    throw error;
  }
}

async function openFeedback({ data, redis, retention }: ServerSettings, onError: (error: unknown) => void) {
  if (data === undefined) return undefined;
  return Feedback.open({ directory: data, onError, retention, ...(redis !== undefined && { store: { redis } }) });
}

/** Why the service cannot be reached where it was told to be. */
function listenError(error: NodeJS.ErrnoException, { host, port }: ServerSettings): Error {
  const { code = '' } = error;
  const place = `${host}, port ${port}`;
  if (code === 'EADDRINUSE') {
    const message = `Another program listens at ${place}: stop it, or give another port (0 = any that is free).`;
    return new LimbeckError('ERR_IO', message, { cause: error });
  }
  if (code === 'EACCES') {
    const message = `This user may not listen at ${place}: ports below 1024 need a privilege.`;
    return new LimbeckError('ERR_IO', message, { cause: error });
  }
  if (['EADDRNOTAVAIL', 'ENOTFOUND', 'EAI_AGAIN'].includes(code)) {
    const message = `host: '${host}' is no address of this machine (${code}); 0.0.0.0 and :: are all that it has.`;
    return new LimbeckError('ERR_INVALID_ARGUMENT', message, { cause: error });
  }
  return error;
}

/** @returns what stops it */
function every(ms: number, task: () => Promise<unknown>, onError: (error: unknown) => void): () => void {
  const timer = setInterval(() => task().catch(onError), ms);
  timer.unref();
  return () => clearInterval(timer);
}
