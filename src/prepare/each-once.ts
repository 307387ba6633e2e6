import type { z } from 'zod';

/** A list in which a value that comes twice is a mistake. */
export function eachOnce<List extends z.ZodArray>(list: List): List {
  return list.refine((values) => new Set(values).size === values.length, { message: 'expected each value once' });
}
