import type { CatalogueItem } from '../recommend/item-index.js';
import type { HistoryRequest } from '../recommend/request.js';
import type { Student } from '../recommend/student.js';
import type { Feedback } from './feedback.js';

/** Popular items looked at beyond k, because some are excluded or gone. */
const SPARE = 200;

/** The items that users of the service chose most of late, of those that a request allows. */
export function popularItems(
  student: Student,
  feedback: Feedback | undefined,
  { k = 10, exclude = [], candidates, filter }: Omit<HistoryRequest, 'history'>,
): { id: string; score: number }[] {
  const excluded = new Set(exclude);
  const allowed = candidates && new Set(candidates);
  const popular = feedback?.popular(k + excluded.size + SPARE) ?? [];
  const items: { id: string; score: number }[] = [];
  for (const one of popular) {
    const item = student.items[student.indexOf(one.id) ?? -1];
    if (item === undefined || item.hidden === true || excluded.has(one.id)) continue;
    if (!(allowed?.has(one.id) ?? true) || !matches(item, filter)) continue;
    items.push(one);
    if (items.length === k) break;
  }
  return items;
}

/** As in `recommend()`: lists that are empty do not filter. */
function matches({ categories = [] }: CatalogueItem, filter: HistoryRequest['filter']): boolean {
  const { any = [], all = [], none = [] } = filter ?? {};
  const isOf = (category: string) => categories.includes(category);
  return (any.length === 0 || any.some(isOf)) && all.every(isOf) && !none.some(isOf);
}
