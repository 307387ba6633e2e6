/** @import { EventType, ScoredItem } from './api.js' */
import { announce } from './announce.js';
import { Api } from './api.js';
import { byId, element } from './dom.js';
import { ItemTexts } from './item-texts.js';
import { setUpKeyDialog } from './key-dialog.js';
import { MetricsPanel } from './metrics-panel.js';
import { ModelCatalogue } from './models.js';
import { ModelsPanel } from './models-panel.js';
import { Person } from './person.js';
import { PersonPanel } from './person-panel.js';
import { explain, problemNotice } from './problem-notice.js';
import { RecommendationsPanel } from './recommendations-panel.js';
import { SearchPanel } from './search-panel.js';

const DONE = {
  view: 'Viewed',
  click: 'Clicked',
  purchase: 'Purchased',
  rating: 'Rated',
  dismiss: 'Dismissed',
};

const api = new Api();
const person = new Person(api);
const models = new ModelCatalogue(api);
const texts = new ItemTexts(api);
const notice = byId('feedback-state', HTMLElement);

/**
 * @param {ScoredItem} item
 * @param {EventType} type
 * @param {{ value?: number | undefined, requestId?: string | undefined, strategy?: string | undefined }} details
 */
async function sendFeedback(item, type, details) {
  const what = `${DONE[type]}${details.value === undefined ? '' : ` ${details.value} of 5`}: ${texts.get(item.id)}`;
  try {
    await person.record(item.id, type, details);
    notice.replaceChildren(element('p', { class: 'done', dir: 'auto' }, what));
  } catch (error) {
    notice.replaceChildren(problemNotice(error, { retry: () => void sendFeedback(item, type, details) }));
    announce(`Not stored. ${explain(error).title}.`);
  }
}

const search = new SearchPanel({ api, person, texts, feedback: sendFeedback });
const recommendations = new RecommendationsPanel({
  api,
  person,
  models,
  texts,
  feedback: sendFeedback,
  showSimilar: (item) => void search.showSimilar(item),
});
const personPanel = new PersonPanel({ api, person, texts });
const modelsPanel = new ModelsPanel(models);
const metrics = new MetricsPanel(api);

person.addEventListener('opened', () => {
  const address = new URL(location.href);
  if (person.isGuest) address.searchParams.delete('user');
  else address.searchParams.set('user', person.userId);
  history.replaceState(null, '', address);
  notice.replaceChildren();
  search.clearPersonal();
  void personPanel.refresh({ isOther: true });
  void recommendations.refresh();
});
person.addEventListener('changed', () => {
  void personPanel.refresh();
  void recommendations.refresh({ highlight: true });
});
models.addEventListener('swapped', () => {
  void personPanel.refresh();
  void recommendations.refresh({ highlight: true });
});

async function start() {
  await modelsPanel.refresh();
  metrics.start();
  const isOpen = await personPanel.open(new URL(location.href).searchParams.get('user') ?? '');
  // A service that keeps no users still recommends to a guest.
  if (!isOpen) await person.open('');
}

api.addEventListener('key', () => {
  search.clear();
  void start();
});
setUpKeyDialog(api);
void start();
