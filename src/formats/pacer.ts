/** Long work in JavaScript that lets the event loop turn now and then, so that timers and requests are not held up. */

const TURN_MS = 4;

/** Awaited between small pieces of work: hands over to the event loop once 4 ms have passed since it last turned. */
export type Pause = () => Promise<void>;

export function createPacer(): Pause {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < TURN_MS) return;
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    last = performance.now();
  };
}
