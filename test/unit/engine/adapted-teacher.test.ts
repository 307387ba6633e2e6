import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import type { DistillSettings } from '../../../src/engine/options.js';
import { obtainTeacher } from '../../../src/engine/stages.js';
import { Workspace } from '../../../src/engine/workspace.js';
import { LimbeckError } from '../../../src/errors.js';
import type { Dataset } from '../../../src/prepare/dataset.js';
import type { ProgressEvent } from '../../../src/prepare/hooks.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';
import { CORPUS, TINY } from '../teacher/texts.js';

const folder = mkdtempSync(join(tmpdir(), 'limbeck-adapted-'));
const engine = loadBinding().createEngine({ threads: 1 });
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

test('a teacher that is adapted with LoRA is merged, and a run that goes on finds the same one', async () => {
  const training = { ...TINY.training, epochs: 2 };
  const { model: base } = await pretrainLanguageModel(engine, CORPUS, { ...TINY, training });
  const directory = join(folder, 'base');
  await base.save(directory);
  const teacher = { directory, adapt: { ...training, lora: { rank: 2, targets: ['mlp.input'] } } };
  const settings = { teacher, knowledge: {}, seeds: [0] } as unknown as DistillSettings;
  const workspace = await Workspace.open(join(folder, 'output'), settings);
  const context = { engine, settings, workspace, hooks: {} };
  const dataset = { items: [] } as unknown as Dataset;
  const models = [];
  for (let run = 0; run < 2; run++) models.push((await obtainTeacher(context, dataset, CORPUS)).model);
  const [first, again] = models.map((model) => {
    expect(model.adapter).toBeUndefined();
    return model.native.parameters().map(({ name }) => [name, model.native.getParameter(name)] as const);
  });
  expect(again).toEqual(first);
  const changed = first?.filter(([name, values]) => String(values) !== String(base.native.getParameter(name)));
  expect(changed?.map(([name]) => name)).toEqual(['layers.0.mlp.input.weight', 'layers.1.mlp.input.weight']);
  for (const model of [base, ...models]) model.dispose();
  await workspace.close();
});

test('a training whose model could not be saved is not lost: the run that goes on takes it from its last state', async () => {
  const training = { ...TINY.training, epochs: 2 };
  const settings = { teacher: { ...TINY, training }, knowledge: {}, seeds: [0] };
  const workspace = await Workspace.open(join(folder, 'full'), settings);
  const steps: number[] = [];
  const onProgress = ({ loss, done }: ProgressEvent) => loss !== undefined && steps.push(done);
  const context = { engine, settings: settings as unknown as DistillSettings, workspace, hooks: { onProgress } };
  const dataset = { items: [] } as unknown as Dataset;
  vi.spyOn(LanguageModel.prototype, 'save').mockRejectedValueOnce(new LimbeckError('ERR_NO_SPACE', 'full'));
  await expect(obtainTeacher(context, dataset, CORPUS)).rejects.toMatchObject({ code: 'ERR_NO_SPACE' });
  expect(steps.length).toBeGreaterThan(0);

  const trained = steps.length;
  const { model, history } = await obtainTeacher(context, dataset, CORPUS);
  expect(steps).toHaveLength(trained);
  expect(history).toHaveLength(2);
  expect(readdirSync(workspace.directory).sort()).toEqual(['run.json', 'teacher', 'teacher-history.json']);
  model.dispose();
  await workspace.close();
});
