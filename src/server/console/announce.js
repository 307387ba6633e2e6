import { byId } from './dom.js';

/**
 * Says something through the page's live region. The same words twice are said twice.
 *
 * @param {string} text
 */
export function announce(text) {
  const region = byId('announcer', HTMLElement);
  region.textContent = '';
  setTimeout(() => {
    region.textContent = text;
  }, 50);
}
