/**
 * Compares the product's code path with what a float64 reference computed: `npm run --silent parity -- DIR…`.
 *
 * A folder holds a checkpoint and `expected.safetensors` (hidden states, attention maps, logits, loss, gradients, three
 * AdamW steps), or `teacher/`, `student/`, `distil.json` and `expected.safetensors` (the terms of the distillation loss
 * and their gradients). Prints one JSON object with the worst relative error ‖out − reference‖/‖reference‖ of each
 * group. Exit code 0: within tolerance, 1: not, 2: a folder of another layout.
 */
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setup } from './setup.mjs';

const FORWARD_TOLERANCE = 1e-5;
const GRADIENT_TOLERANCE = 1e-4;
const TOLERANCES = {
  hiddenStates: FORWARD_TOLERANCE,
  attentions: FORWARD_TOLERANCE,
  logits: FORWARD_TOLERANCE,
  loss: FORWARD_TOLERANCE,
  lossTerms: FORWARD_TOLERANCE,
  gradients: GRADIENT_TOLERANCE,
  adamw: GRADIENT_TOLERANCE,
};
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
const CROSS_ENTROPY = { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 };

/** A folder that is not laid out as expected. */
class LayoutError extends Error {}

// A gradient that is zero in exact arithmetic (a key bias under softmax) is rounding noise in any reference: a tensor
// whose norm is below this share of its group's is measured against the group.
const NOISE = 1e-7;

/** Worst relative error of each group. */
class Errors {
  /** @type {Record<string, number>} */
  groups = {};

  /**
   * @param {string} group
   * @param {ArrayLike<number>} out
   * @param {ArrayLike<number>} reference
   * @param {number} [groupNorm] of all tensors that this one stands beside
   */
  compare(group, out, reference, groupNorm = 0) {
    if (out.length !== reference.length) {
      throw new LayoutError(`${group}: ${out.length} values, the reference has ${reference.length}`);
    }
    let difference = 0;
    let norm = 0;
    for (let i = 0; i < reference.length; i++) {
      difference += (out[i] - reference[i]) ** 2;
      norm += reference[i] ** 2;
    }
    const scale = Math.sqrt(norm) > NOISE * groupNorm ? Math.sqrt(norm) : groupNorm;
    const error = scale === 0 ? Math.sqrt(difference) : Math.sqrt(difference) / scale;
    const worst = this.groups[group] ?? 0;
    this.groups[group] = Number.isNaN(error) || error > worst ? error : worst;
  }

  /** Whether every group is within its tolerance; NaN never is. */
  get passed() {
    return Object.entries(this.groups).every(([group, error]) => error <= TOLERANCES[group]);
  }
}

/** The parts of the product that are compared. */
async function loadProduct() {
  const load = (path) => import(new URL(`../dist/${path}`, import.meta.url).href);
  const { loadBinding } = await load('binding.js');
  const { loadCheckpoint } = await load('formats/checkpoint.js');
  const { readSafetensors } = await load('formats/safetensors.js');
  const { huggingFaceFromNative } = await load('formats/tensor-names.js');
  return { engine: loadBinding().createEngine({ threads: 0 }), loadCheckpoint, readSafetensors, huggingFaceFromNative };
}

/** The padded batch of a case without its padding, and how to drop padding from the reference's tensors. */
function unpad(expected) {
  const shape = tensor(expected, 'attention_mask').shape;
  const [numSequences, length] = shape;
  const mask = Array.from(tensor(expected, 'attention_mask').data, Number);
  const tokens = [...mask.keys()].filter((i) => mask[i] === 1);
  const lengths = Array.from({ length: numSequences }, (_, s) =>
    mask.slice(s * length, (s + 1) * length).reduce((sum, one) => sum + one, 0),
  );
  const offsets = [0];
  for (const one of lengths) offsets.push(offsets[offsets.length - 1] + one);
  const pick = (name) => Int32Array.from(tokens, (i) => Number(tensor(expected, name).data[i]));
  return {
    batch: { inputIds: pick('input_ids'), sequenceOffsets: Int32Array.from(offsets) },
    labels: pick('labels'),
    /** Rows of unmasked tokens of a tensor [B, T, columns]. */
    rows(name) {
      const { data, shape: full } = tensor(expected, name);
      const columns = full[2];
      return tokens.flatMap((i) => Array.from(data.subarray(i * columns, (i + 1) * columns)));
    },
    /** The t × t corners of maps [B, H, T, T], sequence by sequence. */
    maps(name) {
      const { data, shape: full } = tensor(expected, name);
      const heads = full[1];
      const values = [];
      lengths.forEach((t, s) => {
        for (let head = 0; head < heads; head++) {
          for (let row = 0; row < t; row++) {
            const start = ((s * heads + head) * length + row) * length;
            values.push(...data.subarray(start, start + t));
          }
        }
      });
      return values;
    },
  };
}

function tensor(expected, name) {
  const found = expected.get(name);
  if (found === undefined) throw new LayoutError(`expected.safetensors has no tensor '${name}'`);
  return found;
}

/** Forward pass, gradients and optimiser of one checkpoint. */
async function compareModel(product, directory, expected) {
  const { engine } = product;
  const errors = new Errors();
  const { batch, labels, rows, maps } = unpad(expected);
  const { model, family, config } = await product.loadCheckpoint(engine, directory);
  const layers = config.numHiddenLayers;
  const result = await model.forward({
    ...batch,
    hiddenStates: Array.from({ length: layers + 1 }, (_, l) => l),
    attentions: Array.from({ length: layers }, (_, l) => l + 1),
    logits: 'dense',
    labels,
  });
  result.hiddenStates.forEach((state, l) => {
    errors.compare('hiddenStates', state, rows(`hidden_states.${l}`));
  });
  result.attentions.forEach((map, l) => {
    errors.compare('attentions', map, maps(`attentions.${l}`));
  });
  errors.compare('logits', result.logits, rows('logits'));
  errors.compare('loss', [result.loss], tensor(expected, 'loss').data);

  const request = {
    ...batch,
    labels,
    learningRate: ADAMW_LEARNING_RATE,
    dropoutSeed: -1,
    losses: CROSS_ENTROPY,
    sampledNegatives: 0,
  };
  const trainer = engine.createTrainer(model, ADAMW);
  await trainer.computeGradients(request);
  compareTensors(product, errors, 'gradients', 'grad.', { family, config, expected }, (name) =>
    model.getGradient(name),
  );
  const losses = [];
  for (let step = 0; step < 3; step++) losses.push((await trainer.step(request)).loss);
  errors.compare('adamw', losses, tensor(expected, 'adamw_losses').data);
  compareTensors(product, errors, 'adamw', 'adamw.', { family, config, expected }, (name) => model.getParameter(name));
  trainer.dispose();
  model.dispose();
  return errors;
}

/** Every tensor `<prefix><Hugging Face name>` of the reference. */
function compareTensors(product, errors, group, prefix, { family, config, expected }, get) {
  const ours = product.huggingFaceFromNative(family, config, get);
  const names = [...expected.keys()].filter(
    (name) => name.startsWith(prefix) && !name.startsWith(`${prefix}projection.`),
  );
  const groupNorm = Math.hypot(...names.map((name) => Math.hypot(...expected.get(name).data)));
  for (const name of names) {
    const found = ours.get(name.slice(prefix.length));
    if (found === undefined) throw new LayoutError(`expected.safetensors has '${name}', which the model does not have`);
    errors.compare(group, found.data, expected.get(name).data, groupNorm);
  }
  if (names.length !== ours.size)
    throw new LayoutError(`expected.safetensors has ${names.length} of ${ours.size} '${prefix}' tensors`);
}

/** The loss of a distillation step, the teacher given as a model and then as arrays. */
async function compareDistillation(product, directory, expected) {
  const { engine } = product;
  const errors = new Errors();
  const { batch, labels, rows } = unpad(expected);
  const settings = JSON.parse(readFileSync(join(directory, 'distil.json'), 'utf8'));
  const layerMap = settings.layer_map.map(({ student, teacher }) => [student, teacher]);
  const teacher = await product.loadCheckpoint(engine, join(directory, 'teacher'));
  const student = await product.loadCheckpoint(engine, join(directory, 'student'));
  const said = await teacher.model.forward({
    ...batch,
    hiddenStates: layerMap.map(([, layer]) => layer),
    attentions: layerMap.map(([, layer]) => layer),
    logits: 'dense',
  });
  errors.compare('logits', said.logits, rows('teacher.logits'));
  errors.compare('logits', (await student.model.forward({ ...batch, logits: 'dense' })).logits, rows('student.logits'));

  const signals = [
    { model: teacher.model, layerMap },
    { layerMap, hidden: said.hiddenStates, attentions: said.attentions, logits: { dense: said.logits } },
  ];
  for (const signal of signals) {
    const trainer = engine.createTrainer(student.model, ADAMW);
    layerMap.forEach(([layer], index) => {
      const { shape, data } = tensor(expected, `projection.${layer}`);
      trainer.setProjection(index, shape[0], shape[1], data);
    });
    const result = await trainer.computeGradients({
      ...batch,
      labels,
      learningRate: 0,
      dropoutSeed: -1,
      losses: { ...settings.weights, temperature: settings.temperature, fusion: 1, gate: 1 },
      teacher: signal,
      sampledNegatives: 0,
    });
    errors.compare('lossTerms', [result.loss], tensor(expected, 'loss').data);
    for (const term of ['ce', 'kd', 'hidden', 'attention']) {
      errors.compare('lossTerms', [result[term]], tensor(expected, `loss.${term}`).data);
    }
    const { family, config } = student;
    compareTensors(product, errors, 'gradients', 'grad.', { family, config, expected }, (name) =>
      student.model.getGradient(name),
    );
    layerMap.forEach(([layer], index) => {
      errors.compare(
        'gradients',
        trainer.getProjectionGradient(index),
        tensor(expected, `grad.projection.${layer}`).data,
      );
    });
    trainer.dispose();
  }
  teacher.model.dispose();
  student.model.dispose();
  return errors;
}

async function compareDirectory(product, directory) {
  const file = join(directory, 'expected.safetensors');
  const isDistillation = existsSync(join(directory, 'distil.json'));
  if (!existsSync(file) || !(isDistillation || existsSync(join(directory, 'config.json')))) {
    throw new LayoutError('expected expected.safetensors beside a config.json or a distil.json');
  }
  const expected = (await product.readSafetensors(file)).tensors;
  const compare = isDistillation ? compareDistillation : compareModel;
  const errors = await compare(product, directory, expected);
  // JSON has no NaN.
  const groups = Object.entries(errors.groups).map(([group, error]) => [group, Number.isFinite(error) ? error : 'NaN']);
  return {
    directory,
    kind: isDistillation ? 'distillation' : 'model',
    groups: Object.fromEntries(groups),
    tolerances: Object.fromEntries(groups.map(([group]) => [group, TOLERANCES[group]])),
    passed: errors.passed,
  };
}

/**
 * @param {readonly string[]} directories
 * @returns {Promise<number>} The exit code.
 */
export async function parity(directories) {
  if (directories.length === 0) {
    console.error('Usage: npm run --silent parity -- DIR…');
    return 2;
  }
  setup();
  const product = await loadProduct();
  const cases = [];
  try {
    for (const directory of directories) {
      try {
        cases.push(await compareDirectory(product, directory));
      } catch (error) {
        if (!(error instanceof LayoutError)) throw error;
        console.error(`${directory}: ${error.message}`);
        return 2;
      }
    }
  } finally {
    product.engine.dispose();
  }
  const passed = cases.every((one) => one.passed);
  console.log(JSON.stringify({ passed, cases }));
  return passed ? 0 : 1;
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    process.exitCode = await parity(process.argv.slice(2));
  } catch (error) {
    console.error(error.code === undefined ? error : `${error.message} (${error.code})`);
    process.exitCode = 2;
  }
}
