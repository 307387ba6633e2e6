import { existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readSafetensors, writeSafetensors } from '../../../src/formats/safetensors.js';
import {
  copyParameters,
  deleteTrainingCheckpoint,
  loadTrainingCheckpoint,
  restoreParameters,
  saveTrainingCheckpoint,
} from '../../../src/teacher/training-checkpoint.js';
import { fakeModel, fakeTrainer, temporaryDirectory } from './fake-model.js';

const folder = temporaryDirectory();
const projections = [[1, 3]] as const;
const isAny = () => true;
const options = (name: string) => ({ path: join(folder, name), fingerprint: 'run 1', everySteps: 1 });

/** Values that no decimal text of few digits holds. */
function trained() {
  const model = fakeModel();
  const trainer = fakeTrainer(model);
  model.setParameter('weight', Float32Array.of(1 / 3, -2 / 7, 1e-30));
  trainer.setProjection(0, 1, 3, Float32Array.of(1 / 9, 2 / 9, -1 / 11));
  trainer.setState({ stepCount: 17, first: Float32Array.of(0.1, 0.2, 0.3), second: Float32Array.of(1e-8, 2, 3e8) });
  const best = new Map([
    ['count', Float32Array.of(5)],
    ['weight', Float32Array.of(1 / 6, 0, -0)],
  ]);
  return { model, trainer, projections, best };
}

test('brings back parameters, moments, projections, best parameters and counters, bit for bit', async () => {
  const saved = trained();
  const state = { epoch: 2, sums: { loss: 0.1 + 0.2 }, records: [{ seconds: 1 / 3 }] };
  await saveTrainingCheckpoint(options('whole'), { ...saved, state });

  const model = fakeModel();
  const trainer = fakeTrainer(model);
  const loaded = await loadTrainingCheckpoint(options('whole'), { model, trainer, projections }, isAny);
  expect(copyParameters(model)).toEqual(copyParameters(saved.model));
  expect(trainer.getState()).toEqual(saved.trainer.getState());
  expect(trainer.getProjection(0)).toEqual(saved.trainer.getProjection(0));
  expect(loaded).toEqual({ state, best: saved.best });
});

test('without best parameters there are none, and without a file there is nothing', async () => {
  const { model, trainer } = trained();
  await saveTrainingCheckpoint(options('early'), { model, trainer, projections, best: undefined, state: {} });
  const found = await loadTrainingCheckpoint(options('early'), { model, trainer, projections }, isAny);
  expect(found?.best).toBeUndefined();
  expect(await loadTrainingCheckpoint(options('absent'), { model, trainer, projections }, isAny)).toBeUndefined();
});

test.each([
  ['that are no JSON', '{', isAny],
  ['that are missing', undefined, isAny],
  ['of another kind', '{"epoch":1}', () => false],
])('counters %s are refused by name with a remedy, and nothing is changed', async (_, state, isState) => {
  const path = join(folder, 'damaged');
  await saveTrainingCheckpoint(options('damaged'), { ...trained(), state: {} });
  const { tensors, metadata } = await readSafetensors(path);
  const { state: __, ...others } = metadata;
  await writeSafetensors(
    path,
    [...tensors].map(([name, { shape, data }]) => [name, { shape, data: data as Float32Array }]),
    state === undefined ? others : { ...others, state },
  );
  const model = fakeModel();
  const before = copyParameters(model);
  const load = loadTrainingCheckpoint(options('damaged'), { model, trainer: fakeTrainer(model), projections }, isState);
  await expect(load).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_MISMATCH',
    message: expect.stringMatching(/damaged.*Delete it/),
  });
  expect(copyParameters(model)).toEqual(before);
});

test('the file of another run is refused by name with a remedy, and nothing is changed', async () => {
  await saveTrainingCheckpoint(options('other'), { ...trained(), state: {} });
  const bytes = readFileSync(join(folder, 'other'));
  const model = fakeModel();
  const trainer = fakeTrainer(model);
  const load = loadTrainingCheckpoint(
    { ...options('other'), fingerprint: 'run 2' },
    { model, trainer, projections },
    isAny,
  );
  await expect(load).rejects.toThrow(
    expect.objectContaining({
      code: 'ERR_CHECKPOINT_MISMATCH',
      message: expect.stringMatching(/other'.*Delete it/),
    }),
  );
  expect(copyParameters(model)).toEqual(copyParameters(fakeModel()));
  expect(readFileSync(join(folder, 'other')).equals(bytes)).toBe(true);
});

test('a file that is no training checkpoint is refused', async () => {
  const model = fakeModel();
  const load = (name: string) =>
    loadTrainingCheckpoint(options(name), { model, trainer: fakeTrainer(model), projections }, isAny);
  await writeSafetensors(join(folder, 'weights'), [['w', { shape: [1], data: Float32Array.of(1) }]]);
  await expect(load('weights')).rejects.toThrow(expect.objectContaining({ code: 'ERR_FILE_FORMAT' }));
  writeFileSync(join(folder, 'text'), 'this is a text');
  await expect(load('text')).rejects.toThrow(expect.objectContaining({ code: 'ERR_SAFETENSORS' }));
  await saveTrainingCheckpoint(options('short'), { ...trained(), state: {} });
  truncateSync(join(folder, 'short'), 400);
  await expect(load('short')).rejects.toThrow(expect.objectContaining({ code: 'ERR_SAFETENSORS' }));
});

test('a state that cannot be written leaves the earlier one, and no other file', async () => {
  const saved = trained();
  await saveTrainingCheckpoint(options('kept'), { ...saved, state: { step: 1 } });
  const bytes = readFileSync(join(folder, 'kept'));
  const files = readdirSync(folder);
  const broken = { ...saved.model, trainableParameters: () => [{ name: 'gone', shape: [1] }] };
  await expect(
    saveTrainingCheckpoint(options('kept'), { ...saved, model: broken, state: { step: 2 } }),
  ).rejects.toThrow();
  expect(readFileSync(join(folder, 'kept')).equals(bytes)).toBe(true);
  expect(readdirSync(folder)).toEqual(files);
});

test('deleting leaves no file, and does not mind that there is none', async () => {
  await saveTrainingCheckpoint(options('done'), { ...trained(), state: {} });
  await deleteTrainingCheckpoint(options('done'));
  expect(existsSync(join(folder, 'done'))).toBe(false);
  await expect(deleteTrainingCheckpoint(options('done'))).resolves.toBeUndefined();
});

test('copies of parameters do not follow the model, and bring it back', () => {
  const { model } = trained();
  const copies = copyParameters(model);
  const weight = model.getParameter('weight');
  model.setParameter('weight', new Float32Array(3));
  expect(copies.get('weight')).toEqual(weight);
  restoreParameters(model, copies);
  expect(model.getParameter('weight')).toEqual(weight);
});
