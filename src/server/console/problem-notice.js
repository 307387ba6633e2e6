import { ApiError } from './api.js';
import { element } from './dom.js';

/**
 * What went wrong, and what can be done about it.
 *
 * @param {unknown} error
 * @param {{ retry?: () => void }} [actions]
 */
export function problemNotice(error, { retry } = {}) {
  const { title, hint, wantsKey } = explain(error);
  const requestId = error instanceof ApiError ? error.requestId : undefined;
  return element(
    'div',
    { class: 'problem', role: 'group', 'aria-label': title },
    element('p', { class: 'problem-title' }, title),
    element('p', {}, hint),
    requestId !== undefined && element('p', { class: 'small muted' }, 'Request ', element('code', {}, requestId)),
    element(
      'div',
      { class: 'row' },
      wantsKey &&
        element(
          'button',
          { type: 'button', class: 'button primary', click: () => document.getElementById('key')?.click() },
          'Enter a key',
        ),
      retry && element('button', { type: 'button', class: 'button', 'data-key': 'retry', click: retry }, 'Try again'),
    ),
  );
}

/**
 * @param {unknown} error
 * @returns {{ title: string, hint: string, wantsKey?: boolean }}
 */
export function explain(error) {
  if (!(error instanceof ApiError)) return { title: 'The page failed', hint: String(error) };
  const { status, code, message, retryAfterSeconds } = error;
  const when = retryAfterSeconds === undefined ? 'in a moment' : `in ${retryAfterSeconds} s`;
  if (status === 0) return { title: 'Not reachable', hint: message };
  if (status === 401) {
    return { title: 'A key is needed', hint: 'This service answers to those who have an API key.', wantsKey: true };
  }
  if (status === 403) return { title: 'This key may not do that', hint: message, wantsKey: true };
  if (status === 429) return { title: 'Too many requests', hint: `${message} Try again ${when}.` };
  if (status === 507) return { title: 'Not stored', hint: message };
  // Without a time to come back at, it is not load that keeps the service from answering.
  if (status === 503 && code === 'ERR_UNAVAILABLE') return { title: 'Not available', hint: message };
  if (status === 503)
    return { title: 'The service is busy', hint: `It refused this request to stay fast. Try again ${when}.` };
  return { title: `Refused (${code})`, hint: message };
}
