/** Makes elements from data. Text is always a text node: nothing that a service or a user wrote is read as HTML. */

/** @typedef {string | number | boolean | null | undefined | ((event: any) => void)} Attribute */
/** @typedef {Node | string | number | false | null | undefined} Child */

const SVG = 'http://www.w3.org/2000/svg';

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, Attribute>} [attributes] A function listens to the event of its name; `true` sets an empty
 * attribute; `false`, `null` and `undefined` none.
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  setAttributes(made, attributes);
  appendAll(made, children);
  return made;
}

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, Attribute>} [attributes]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[Tag]}
 */
export function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  setAttributes(made, attributes);
  appendAll(made, children);
  return made;
}

/**
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T} The page's element of that id.
 */
export function byId(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`The page has no ${type.name} '${id}'.`);
  return found;
}

/**
 * Replaces what is in a container. When the focus was in it, it goes to the new element with the same `data-key`,
 * or, without one, to the container, which has a tabindex of −1 for it.
 *
 * @param {HTMLElement} container
 * @param {...Child} children
 */
export function render(container, ...children) {
  const { activeElement } = document;
  const hadFocus = activeElement instanceof HTMLElement && container.contains(activeElement);
  const key = hadFocus ? activeElement.dataset['key'] : undefined;
  container.replaceChildren();
  appendAll(container, children);
  if (!hadFocus) return;
  const controls = /** @type {HTMLElement[]} */ ([...container.querySelectorAll('[data-key]')]);
  (controls.find(({ dataset }) => dataset['key'] === key) ?? container).focus();
}

/**
 * @param {Element} made
 * @param {Record<string, Attribute>} attributes
 */
function setAttributes(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
}

/**
 * @param {Element} made
 * @param {Child[]} children
 */
function appendAll(made, children) {
  for (const child of children) {
    if (child === false || child === null || child === undefined) continue;
    made.append(typeof child === 'number' ? String(child) : child);
  }
}
