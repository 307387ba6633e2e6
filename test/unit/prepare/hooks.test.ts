import { expect, test } from 'vitest';
import { throwIfAborted } from '../../../src/prepare/hooks.js';

test('passes without a signal, and with one that is not aborted', () => {
  expect(() => throwIfAborted(undefined)).not.toThrow();
  expect(() => throwIfAborted(new AbortController().signal)).not.toThrow();
});

test('an aborted signal is ERR_ABORTED, with its reason as the cause', () => {
  const reason = new Error('the user left');
  expect(() => throwIfAborted(AbortSignal.abort(reason))).toThrow(
    expect.objectContaining({ code: 'ERR_ABORTED', cause: reason }),
  );
});
