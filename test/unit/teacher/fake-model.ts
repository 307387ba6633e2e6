/** A model and a trainer in plain JavaScript whose every step depends on everything that a resumed run must bring back. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import type { NativeTrainer, NativeTransformer, StepRequest, StepResult } from '../../../src/binding.js';

/** A folder for one test file, removed after its last test. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), 'limbeck-teacher-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** What a call to the fake that no test expects runs into. */
function unexpected(): never {
  throw new Error('The training loop is not expected to call this');
}

/** `count` [1] is the number of steps that made the parameters; `weight` [3] mixes all that a step was given. */
export function fakeModel(): NativeTransformer {
  const values = new Map([
    ['count', new Float32Array(1)],
    ['weight', Float32Array.of(0.5, -0.25, 0.125)],
  ]);
  return {
    device: 'cpu',
    numParameters: 4,
    parameters: () => Array.from(values, ([name, { length }]) => ({ name, shape: [length] })),
    trainableParameters: () => Array.from(values, ([name, { length }]) => ({ name, shape: [length] })),
    attachAdapter: unexpected,
    mergeAdapter: unexpected,
    removeAdapter: unexpected,
    getParameter: (name) => (values.get(name) ?? unexpected()).slice(),
    parameterChecksum: unexpected,
    setParameter: (name, replacement) => (values.get(name) ?? unexpected()).set(replacement),
    loadParameter: unexpected,
    getGradient: unexpected,
    initialize: unexpected,
    setItemFeatures: unexpected,
    itemTable: unexpected,
    addItemBias: unexpected,
    forward: unexpected,
    interpolate: unexpected,
    interpolateFrom: unexpected,
    copy: unexpected,
    project: unexpected,
    startGeneration: unexpected,
    dispose: () => {},
  };
}

/** Momentum, a learned projection [1, 3] and the dropout seed all enter the next parameters. */
export function fakeTrainer(model: NativeTransformer): NativeTrainer {
  let projection = new Float32Array(3);
  let state = { stepCount: 0, first: new Float32Array(3), second: new Float32Array(3) };
  const step = async (request: StepRequest): Promise<StepResult> => {
    await Promise.resolve();
    const weight = model.getParameter('weight');
    state.stepCount++;
    weight.forEach((value, i) => {
      const id = request.inputIds[i % request.inputIds.length] ?? 0;
      const gradient = value - id / 10 + (projection[i] ?? 0) + request.dropoutSeed / 2 ** 31;
      state.first[i] = 0.9 * (state.first[i] ?? 0) + gradient;
      state.second[i] = 0.5 * (state.second[i] ?? 0) + gradient * gradient;
      weight[i] = value - (request.learningRate * (state.first[i] ?? 0)) / Math.sqrt((state.second[i] ?? 0) + 1);
      projection[i] = 0.5 * (projection[i] ?? 0) + 0.01 * state.stepCount;
    });
    model.setParameter('weight', weight);
    model.setParameter(
      'count',
      model.getParameter('count').map((count) => count + 1),
    );
    const loss = weight[0] ?? 0;
    return {
      loss,
      ce: 2 * loss,
      kd: 3 * loss,
      hidden: 4 * loss,
      attention: 5 * loss,
      relation: 6 * loss,
      gradNorm: 1,
      numLabels: 1,
    };
  };
  return {
    setProjection: (_index, _rows, _columns, values) => {
      projection = values.slice();
    },
    getProjection: () => projection.slice(),
    getProjectionGradient: unexpected,
    computeGradients: unexpected,
    step,
    getState: () => ({ ...state, first: state.first.slice(), second: state.second.slice() }),
    setState: ({ stepCount, first, second }) => {
      state = { stepCount, first: first.slice(), second: second.slice() };
    },
    dispose: () => {},
  };
}

/** Steps that the parameters in use went through. */
export function countOf(model: NativeTransformer): number {
  return model.getParameter('count')[0] ?? Number.NaN;
}
