import { byId } from './dom.js';

/** What is said sooner after something else is said together with it, so that neither cuts the other off. */
const TOGETHER_MS = 1500;

/** @type {string[]} */
let recent = [];
/** @type {ReturnType<typeof setTimeout> | undefined} */
let forgetting;

/**
 * Says something through the page's live region. The same words twice are said twice.
 *
 * @param {string} text
 */
export function announce(text) {
  const region = byId('announcer', HTMLElement);
  recent.push(text);
  const words = recent.join(' ');
  region.textContent = '';
  setTimeout(() => {
    region.textContent = words;
  }, 50);
  clearTimeout(forgetting);
  forgetting = setTimeout(() => {
    recent = [];
  }, TOGETHER_MS);
}
