import type { z } from 'zod';
import { LimbeckError } from '../errors.js';

/**
 * JSON that a schema lets through.
 *
 * @param what begins the message: `'path'`, and where it helps what that should have been
 * @param remedy a sentence that ends it
 * @throws LimbeckError ERR_FILE_FORMAT, naming the first place that is wrong
 */
export function checkedJson<Schema extends z.ZodType>(
  schema: Schema,
  json: unknown,
  what: string,
  remedy?: string,
): z.output<Schema> {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const place = issue?.path.length ? `${issue.path.join('.')}: ` : '';
  throw new LimbeckError('ERR_FILE_FORMAT', `${what}: ${place}${issue?.message}${remedy ? `. ${remedy}` : ''}`);
}
