/** Which of `count` parts a text belongs to: one large Map or Set would block the event loop when it grows. */
export function shardOf(text: string, count: number): number {
  let hash = 0x811c9dc5; // FNV-1a
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  // Its low bits depend on low bits alone; a fold brings in the others.
  return ((hash ^ (hash >>> 16)) >>> 0) % count;
}
