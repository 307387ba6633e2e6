/** Routes that list and change items and models. */

import type { CatalogueItem } from '../recommend/item-index.js';
import { HttpError } from './http-error.js';
import type { ModelHost, ServedModel } from './model-host.js';
import { defineRoute, type Route } from './route.js';
import * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

/** Items looked at in one turn of the event loop. */
const ITEMS_A_TURN = 5000;

export function catalogueRoutes({ models, itemChanges, metrics, log }: ServiceContext): Route[] {
  /** Counts and logs a change of the models, whatever comes of it. */
  async function change(name: string, result: 'loaded' | 'promoted' | 'rolled-back', act: () => Promise<ServedModel>) {
    try {
      const model = await act();
      metrics.countModelChange(result);
      log.info({ model: model.name, result }, 'model');
      return model;
    } catch (error) {
      metrics.countModelChange('refused');
      log.warn({ model: name, err: error instanceof HttpError ? (error.cause ?? error) : error }, 'model refused');
      throw error;
    }
  }

  return [
    defineRoute(
      {
        method: 'GET',
        url: '/v1/items',
        summary: 'Items of the catalogue: whose id or text has a part, or that have these ids',
        scope: 'read',
        query: schemas.listItemsQuery,
        answer: schemas.listItemsAnswer,
        waits: true,
      },
      async ({ query: { query, ids, limit } }) => {
        if (ids !== undefined && query !== undefined) {
          throw new HttpError(400, 'ERR_INVALID_ARGUMENT', 'Give ids or a query, not both.');
        }
        if (ids !== undefined) {
          const named = typeof ids === 'string' ? ids.split(',') : ids;
          return { items: namedItems(models, new Set(named)).slice(0, limit) };
        }
        return { items: await findItems(models, query?.toLowerCase() ?? '', limit) };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/items',
        summary: 'Adds items, which can be recommended at once, known by their texts',
        scope: 'write',
        body: schemas.addItemsRequest,
        answer: schemas.addItemsAnswer,
        errors: [409, 507],
        waits: true,
      },
      async ({ body: { items } }) => {
        await models.exclusively(() => itemChanges.add(studentsOf(models), items as CatalogueItem[]));
        return { added: items.length };
      },
    ),
    defineRoute(
      {
        method: 'DELETE',
        url: '/v1/items',
        summary: 'Takes items out of the catalogue; unknown ids have no effect',
        scope: 'write',
        body: schemas.removeItemsRequest,
        answer: schemas.removeItemsAnswer,
        errors: [409, 507],
        waits: true,
      },
      async ({ body: { ids } }) => ({
        removed: await models.exclusively(() => itemChanges.remove(studentsOf(models), ids)),
      }),
    ),
    defineRoute(
      {
        method: 'GET',
        url: '/v1/models',
        summary: 'The models that there are, and which one answers',
        scope: 'read',
        answer: schemas.modelsAnswer,
        waits: true,
      },
      async () => ({
        models: await models.list(),
        current: models.current.name,
        promoted: await models.promoted(),
      }),
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/models/load',
        summary: 'Opens a model beside the current one, for requests that name it',
        scope: 'write',
        body: schemas.modelRequest,
        answer: schemas.loadedModelAnswer,
        errors: [404, 409, 422],
        waits: true,
      },
      async ({ body }) => {
        const { name, student } = await change(body.name, 'loaded', () => models.load(body.name));
        return { name, numItems: student.numItems };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/models/promote',
        summary: 'Answers with a model from now on; when it is refused, the current one stays',
        scope: 'write',
        body: schemas.modelRequest,
        answer: schemas.currentModelAnswer,
        errors: [404, 409, 422],
        waits: true,
      },
      async ({ body }) => {
        const { name } = await change(body.name, 'promoted', () => models.promote(body.name));
        return { current: name };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/models/rollback',
        summary: 'Answers with the model before the current one',
        scope: 'write',
        body: schemas.noBody,
        answer: schemas.currentModelAnswer,
        errors: [404, 409, 422],
        waits: true,
      },
      async () => {
        const { name } = await change('the one before', 'rolled-back', () => models.rollback());
        return { current: name };
      },
    ),
  ];
}

function studentsOf(models: ModelHost) {
  return models.loaded.map(({ student }) => student);
}

function namedItems({ current: { student } }: ModelHost, ids: ReadonlySet<string>) {
  const items = Array.from(ids, (id) => student.items[student.indexOf(id) ?? -1]);
  return items.filter((item) => item !== undefined).map(listed);
}

function listed({ id, text, categories }: CatalogueItem) {
  return { id, text, ...(categories && { categories: [...categories] }) };
}

/** @param part in lower case */
async function findItems(models: ModelHost, part: string, limit: number) {
  const { student } = models.current;
  // A catalogue only grows at its end, and outlives its model.
  const { items } = student;
  const found: ReturnType<typeof listed>[] = [];
  for (let i = 0; i < items.length && found.length < limit; i++) {
    if (i > 0 && i % ITEMS_A_TURN === 0) await new Promise(setImmediate);
    const item = items[i] as CatalogueItem;
    const { id, text } = item;
    if (!id.toLowerCase().includes(part) && !text.toLowerCase().includes(part)) continue;
    if (student.indexOf(id) === undefined) continue;
    found.push(listed(item));
  }
  return found;
}
