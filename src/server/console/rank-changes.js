/**
 * What happened between two versions of a ranked list. An item has moved when its place among the items that stayed is
 * another one: an item that merely closes the gap of one that left did not move.
 *
 * @typedef {{ kind: 'new' } | { kind: 'moved', by: number }} RankChange `by` > 0 is up.
 * @param {readonly string[]} before Ids, best first.
 * @param {readonly string[]} after
 * @returns {{ changes: Map<string, RankChange>, gone: string[] }}
 */
export function compareRanks(before, after) {
  const old = new Set(before);
  const now = new Set(after);
  const placeBefore = new Map(before.filter((id) => now.has(id)).map((id, place) => [id, place]));
  /** @type {Map<string, RankChange>} */
  const changes = new Map();
  let place = 0;
  for (const id of after) {
    if (!old.has(id)) {
      changes.set(id, { kind: 'new' });
      continue;
    }
    const by = (placeBefore.get(id) ?? 0) - place++;
    if (by !== 0) changes.set(id, { kind: 'moved', by });
  }
  return { changes, gone: before.filter((id) => !now.has(id)) };
}

/**
 * @param {ReturnType<typeof compareRanks>} comparison
 * @returns {string} One sentence.
 */
export function describeChanges({ changes, gone }) {
  const added = [...changes.values()].filter(({ kind }) => kind === 'new').length;
  const moved = changes.size - added;
  if (added + moved + gone.length === 0) return 'The list stayed the same.';
  const parts = [];
  if (added > 0) parts.push(`${added} new`);
  if (moved > 0) parts.push(`${moved} moved`);
  if (gone.length > 0) parts.push(`${gone.length} left`);
  return `The list changed: ${parts.join(', ')}.`;
}
