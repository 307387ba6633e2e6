/** The comparisons: the product runs a golden folder by the same path as any checkpoint. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GoldenCase, LayoutError } from './golden-case.mjs';
import { normOf, RelativeErrors } from './relative-errors.mjs';

/**
 * @typedef {object} Product The parts that are compared.
 * @property {import('../../src/binding.js').NativeEngine} engine
 * @property {typeof import('../../src/formats/checkpoint.js').loadCheckpoint} loadCheckpoint
 * @property {typeof import('../../src/formats/files.js').readJsonFile} readJsonFile
 * @property {typeof import('../../src/formats/safetensors.js').readSafetensors} readSafetensors
 * @property {typeof import('../../src/formats/tensor-names.js').huggingFaceFromNative} huggingFaceFromNative
 *
 * @typedef {import('../../src/formats/checkpoint.js').Checkpoint} Checkpoint
 */

/** @type {import('../../src/binding.js').OptimizerOptions} */
const ADAMW = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.1,
  momentum: 0,
  maxGradNorm: 1,
};
const ADAMW_LEARNING_RATE = 1e-2;
const ADAMW_STEPS = 3;
const CROSS_ENTROPY = { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 };
const LOSS_TERMS = /** @type {const} */ (['ce', 'kd', 'hidden', 'attention']);

/**
 * @param {Product} product
 * @param {string} directory
 */
export async function compareDirectory(product, directory) {
  const file = join(directory, 'expected.safetensors');
  const isDistillation = existsSync(join(directory, 'distil.json'));
  if (!existsSync(file) || !(isDistillation || existsSync(join(directory, 'config.json')))) {
    throw new LayoutError('ERR_FILE_NOT_FOUND', 'expected expected.safetensors beside a config.json or a distil.json');
  }
  const golden = new GoldenCase((await product.readSafetensors(file)).tensors);
  const errors = new RelativeErrors();
  const compare = isDistillation ? compareDistillation : compareModel;
  await compare(product, directory, golden, errors);
  return { directory, kind: isDistillation ? 'distillation' : 'model', ...errors.report() };
}

/**
 * Forward pass, gradients and optimiser of one checkpoint.
 *
 * @param {Product} product
 * @param {string} directory
 * @param {GoldenCase} golden
 * @param {RelativeErrors} errors
 */
async function compareModel(product, directory, golden, errors) {
  const { engine } = product;
  const checkpoint = await product.loadCheckpoint(engine, directory);
  await compareForward(checkpoint, golden, errors);

  const request = {
    ...golden.batch,
    labels: golden.labels,
    learningRate: ADAMW_LEARNING_RATE,
    dropoutSeed: -1,
    losses: CROSS_ENTROPY,
    sampledNegatives: 0,
  };
  await errors.measure('gradients', async () => {
    const trainer = engine.createTrainer(checkpoint.model, ADAMW);
    await trainer.computeGradients(request);
    compareGradients(product, checkpoint, golden, errors);
    trainer.dispose();
  });
  checkpoint.model.dispose();

  await errors.measure('adamw', async () => {
    const trained = await product.loadCheckpoint(engine, directory);
    const trainer = engine.createTrainer(trained.model, ADAMW);
    const losses = [];
    for (let step = 0; step < ADAMW_STEPS; step++) losses.push((await trainer.step(request)).loss);
    errors.compare('adamw', losses, golden.values('adamw_losses'));
    compareTensors(product, trained, golden, errors, 'adamw', 'adamw.', (name) => trained.model.getParameter(name));
    trainer.dispose();
    trained.model.dispose();
  });
}

/**
 * @param {Checkpoint} checkpoint
 * @param {GoldenCase} golden
 * @param {RelativeErrors} errors
 */
async function compareForward({ model, config }, golden, errors) {
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => i + 1);
  const { hiddenStates, attentions, logits, loss } = await model.forward({
    ...golden.batch,
    hiddenStates: [0, ...layers],
    attentions: layers,
    logits: 'dense',
    labels: golden.labels,
  });
  hiddenStates.forEach((state, l) => {
    errors.compare('hiddenStates', state, golden.rows(`hidden_states.${l}`));
  });
  attentions.forEach((maps, i) => {
    errors.compare('attentions', maps, golden.maps(`attentions.${i}`));
  });
  errors.compare('logits', logits ?? [], golden.rows('logits'));
  errors.compare('loss', [Number(loss)], golden.values('loss'));
}

/**
 * The loss of a distillation step, the teacher given as a model and then as arrays; the worse of both counts.
 *
 * @param {Product} product
 * @param {string} directory
 * @param {GoldenCase} golden
 * @param {RelativeErrors} errors
 */
async function compareDistillation(product, directory, golden, errors) {
  const { engine } = product;
  const { batch, labels } = golden;
  const { layerMap, losses } = readSettings(await product.readJsonFile(join(directory, 'distil.json')));
  const teacher = await product.loadCheckpoint(engine, join(directory, 'teacher'));
  const student = await product.loadCheckpoint(engine, join(directory, 'student'));
  const teacherLayers = layerMap.map(([, layer]) => layer);
  const said = await teacher.model.forward({
    ...batch,
    hiddenStates: teacherLayers,
    attentions: teacherLayers,
    logits: 'dense',
  });
  const teacherLogits = said.logits ?? new Float32Array();
  errors.compare('logits', teacherLogits, golden.rows('teacher.logits'));
  const { logits: studentLogits } = await student.model.forward({ ...batch, logits: 'dense' });
  errors.compare('logits', studentLogits ?? [], golden.rows('student.logits'));

  const signals = [
    { layerMap, model: teacher.model },
    { layerMap, hidden: said.hiddenStates, attentions: said.attentions, logits: { dense: teacherLogits } },
  ];
  for (const signal of signals) {
    const trainer = engine.createTrainer(student.model, ADAMW);
    layerMap.forEach(([layer], index) => {
      const { shape } = golden.tensor(`projection.${layer}`, 2);
      trainer.setProjection(index, Number(shape[0]), Number(shape[1]), golden.values(`projection.${layer}`));
    });
    const request = {
      ...batch,
      labels,
      learningRate: 0,
      dropoutSeed: -1,
      losses,
      teacher: signal,
      sampledNegatives: 0,
    };
    await errors.measure('lossTerms', async () => {
      const result = await trainer.computeGradients(request);
      errors.compare('lossTerms', [result.loss], golden.values('loss'));
      for (const term of LOSS_TERMS) errors.compare('lossTerms', [result[term]], golden.values(`loss.${term}`));
      compareGradients(product, student, golden, errors);
      layerMap.forEach(([layer], index) => {
        const gradient = trainer.getProjectionGradient(index);
        errors.compare('gradients', gradient, golden.values(`grad.projection.${layer}`));
      });
    });
    trainer.dispose();
  }
  teacher.model.dispose();
  student.model.dispose();
}

/**
 * @param {unknown} json What `distil.json` holds.
 * @returns {{ layerMap: [number, number][], losses: import('../../src/binding.js').LossOptions }}
 */
function readSettings(json) {
  const { layer_map: pairs, temperature, weights } = Object(json);
  const isComplete =
    Array.isArray(pairs) &&
    pairs.every((pair) => Number.isInteger(pair?.student) && Number.isInteger(pair?.teacher)) &&
    [temperature, ...LOSS_TERMS.map((term) => weights?.[term])].every(Number.isFinite);
  if (!isComplete) {
    const keys = `layer_map (pairs of student and teacher), temperature and weights (${LOSS_TERMS.join(', ')})`;
    throw new LayoutError('ERR_FILE_FORMAT', `distil.json: expected ${keys}`);
  }
  return {
    layerMap: pairs.map(({ student, teacher }) => [student, teacher]),
    losses: { ...weights, temperature, fusion: 1, gate: 1 },
  };
}

/**
 * @param {Product} product
 * @param {Checkpoint} checkpoint
 * @param {GoldenCase} golden
 * @param {RelativeErrors} errors
 */
function compareGradients(product, checkpoint, golden, errors) {
  compareTensors(product, checkpoint, golden, errors, 'gradients', 'grad.', (name) =>
    checkpoint.model.getGradient(name),
  );
}

/**
 * Every tensor `<prefix><Hugging Face name>` of the reference against the native parameters that `get` returns.
 *
 * @param {Product} product
 * @param {Checkpoint} checkpoint
 * @param {GoldenCase} golden
 * @param {RelativeErrors} errors
 * @param {string} group
 * @param {string} prefix
 * @param {(nativeName: string) => Float32Array} get
 */
function compareTensors(product, { family, config }, golden, errors, group, prefix, get) {
  const ours = product.huggingFaceFromNative(family, config, get);
  const names = golden.names(prefix).filter((name) => !name.startsWith('grad.projection.'));
  const groupNorm = normOf(names.map((name) => golden.values(name)));
  for (const name of names) {
    const found = ours.get(name.slice(prefix.length));
    if (found === undefined) {
      throw new LayoutError('ERR_CHECKPOINT_MISMATCH', `expected.safetensors has '${name}', the model does not`);
    }
    errors.compare(group, found.data, golden.values(name), groupNorm);
  }
  if (names.length !== ours.size) {
    const missing = [...ours.keys()].filter((name) => !names.includes(prefix + name)).join(', ');
    throw new LayoutError('ERR_CHECKPOINT_MISMATCH', `expected.safetensors has no '${prefix}' tensor for ${missing}`);
  }
}
