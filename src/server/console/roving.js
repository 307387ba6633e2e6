/**
 * One tab stop for a group of controls; arrow keys, Home and End move within it.
 *
 * @param {HTMLElement} container Its controls carry `data-roving`; they may come and go.
 * @param {'vertical' | 'horizontal'} direction
 */
export function makeRoving(container, direction) {
  const [back, on] = direction === 'vertical' ? ['ArrowUp', 'ArrowDown'] : ['ArrowLeft', 'ArrowRight'];
  container.addEventListener('focusin', (event) => {
    if (isControl(event.target)) setTabStop(container, event.target);
  });
  container.addEventListener('keydown', (event) => {
    const controls = controlsOf(container);
    const at = controls.indexOf(/** @type {HTMLElement} */ (event.target));
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    /** @type {Record<string, number>} */
    const targets = { [back]: at - 1, [on]: at + 1, Home: 0, End: controls.length - 1 };
    const target = controls[targets[event.key] ?? -1];
    if (target === undefined) return;
    event.preventDefault();
    target.focus();
  });
}

/**
 * Makes one control the tab stop: the given one, or the first.
 *
 * @param {HTMLElement} container
 * @param {HTMLElement} [chosen]
 */
export function setTabStop(container, chosen) {
  const controls = controlsOf(container);
  for (const control of controls) control.tabIndex = control === (chosen ?? controls[0]) ? 0 : -1;
}

/**
 * @param {HTMLElement} container
 * @returns {HTMLElement[]} Its own controls, not those of a group inside it.
 */
function controlsOf(container) {
  const all = /** @type {HTMLElement[]} */ ([...container.querySelectorAll('[data-roving]')]);
  return all.filter((control) => control.closest('[data-group]') === container);
}

/**
 * @param {EventTarget | null} target
 * @returns {target is HTMLElement}
 */
function isControl(target) {
  return target instanceof HTMLElement && target.dataset['roving'] !== undefined;
}
