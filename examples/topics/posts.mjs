/** Posts of a Stack Exchange data dump. */

const QUESTION = '1';
const ANSWER = '2';
/** Excerpts and pages about tags. */
const ABOUT_TAGS = new Set(['4', '5']);
/** Shorter answers say little of a topic. */
const SHORTEST_ANSWER = 80;

/**
 * What there is to learn from, and what to be asked about.
 *
 * @param {string} xml Posts.xml
 * @param {number} numClasses
 * @returns `questions`, { text, tag, answers }: title and body, the first tag that is among the `numClasses` most frequent ones,
 * and the texts of the answers; and `others`, the texts of all posts that belong to none of these questions
 */
export function readPosts(xml, numClasses) {
  const posts = Array.from(xml.matchAll(/<row [^>]*>/g), ([row]) => {
    const title = plain(attribute(row, 'Title'));
    const body = plain(plain(attribute(row, 'Body')).replace(/<[^>]*>/g, ' '))
      .replace(/\s+/g, ' ')
      .trim();
    return {
      id: attribute(row, 'Id'),
      parent: attribute(row, 'ParentId'),
      type: attribute(row, 'PostTypeId'),
      text: title === '' ? body : `${title}. ${body}`,
      tags: Array.from(attribute(row, 'Tags').matchAll(/&lt;(.*?)&gt;/g), ([, tag]) => tag),
    };
  });
  const counts = new Map();
  for (const tag of posts.flatMap(({ tags }) => tags)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  const classes = new Set(
    [...counts.entries()]
      .sort((a, b) => b[1] - a[1])
      .map(([tag]) => tag)
      .slice(0, numClasses),
  );
  const byId = new Map();
  for (const { id, type, text, tags } of posts) {
    const tag = tags.find((one) => classes.has(one));
    if (type === QUESTION && tag !== undefined) byId.set(id, { text, tag, answers: [] });
  }
  const others = [];
  for (const { id, parent, type, text } of posts) {
    if (byId.has(parent)) {
      if (type === ANSWER && text.length >= SHORTEST_ANSWER) byId.get(parent).answers.push(text);
    } else if (!byId.has(id) && text !== '' && (type === QUESTION || type === ANSWER || ABOUT_TAGS.has(type))) {
      others.push(text);
    }
  }
  return { questions: [...byId.values()], others };
}

function attribute(row, name) {
  return new RegExp(` ${name}="([^"]*)"`).exec(row)?.[1] ?? '';
}

function plain(text) {
  const entities = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&', '#xA': ' ', '#xD': ' ', '#x9': ' ' };
  return text.replace(/&(#?\w+);/g, (whole, name) => entities[name] ?? whole);
}
