/** @import { Api } from './api.js' */
import { byId } from './dom.js';

/**
 * Asks for the API key. It is kept for this tab alone.
 *
 * @param {Api} api
 */
export function setUpKeyDialog(api) {
  const dialog = byId('key-dialog', HTMLDialogElement);
  const input = byId('key-input', HTMLInputElement);
  const button = byId('key', HTMLButtonElement);
  const show = () => {
    button.textContent = api.key === '' ? 'API key' : 'API key set';
  };
  const save = (/** @type {string} */ key) => {
    dialog.close();
    api.key = key;
    show();
  };
  button.addEventListener('click', () => {
    input.value = api.key;
    dialog.showModal();
  });
  byId('key-form', HTMLFormElement).addEventListener('submit', (event) => {
    event.preventDefault();
    save(input.value.trim());
  });
  byId('key-forget', HTMLButtonElement).addEventListener('click', () => save(''));
  byId('key-cancel', HTMLButtonElement).addEventListener('click', () => dialog.close());
  // The field does not keep what the dialog no longer shows.
  dialog.addEventListener('close', () => {
    input.value = '';
  });
  show();
}
