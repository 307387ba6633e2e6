/** How events reach those who follow a store. */
import type { StoredEvent } from './event.js';

export interface Listener {
  readonly onEvent: (stored: StoredEvent) => void;
  readonly onError: (error: unknown) => void;
}

/** What `onEvent` throws is the listener's trouble, and not that of the store or of the next event. */
export function deliver(listener: Listener, stored: StoredEvent): void {
  try {
    listener.onEvent(stored);
  } catch (error) {
    report(listener, error);
  }
}

/** What `onError` throws is uncaught: nobody is left to hear of it. */
export function report({ onError }: Listener, error: unknown): void {
  queueMicrotask(() => onError(error));
}
