import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { LimbeckError } from '../../../src/errors.js';
import { type Hooks, type ProgressEvent, throwIfAborted } from '../../../src/prepare/hooks.js';
import { type FitOptions, fitModel, learningRateAt, type StepPosition } from '../../../src/teacher/fit-model.js';
import { CROSS_ENTROPY } from '../../../src/teacher/pretrain.js';
import { copyParameters } from '../../../src/teacher/training-checkpoint.js';
import { countOf, fakeModel, fakeTrainer, temporaryDirectory } from './fake-model.js';

const folder = temporaryDirectory();

describe('learningRateAt', () => {
  const schedule = { learningRate: 0.4, warmupRatio: 0.3, minLearningRateRatio: 0.1 };
  const rates = Array.from({ length: 10 }, (_, step) => learningRateAt(schedule, step, 10));

  test('warms up linearly from above 0, and peaks on the first step after', () => {
    expect(rates.slice(0, 4)).toEqual([0.1, 0.2, expect.closeTo(0.3, 12), 0.4]);
  });

  test('falls along half a cosine towards the smallest rate', () => {
    const falling = rates.slice(3);
    expect(falling).toEqual(falling.toSorted((a, b) => b - a));
    expect(learningRateAt({ ...schedule, warmupRatio: 0 }, 5, 10)).toBeCloseTo((0.4 + 0.04) / 2, 12);
    // The last step comes before the end.
    expect(rates[9]).toBeCloseTo(0.04 + (0.36 / 2) * (1 + Math.cos((Math.PI * 6) / 7)), 12);
    expect(learningRateAt(schedule, 10, 10)).toBeCloseTo(0.04, 12);
    expect(learningRateAt(schedule, 99, 10)).toBeCloseTo(0.04, 12);
  });

  test('without warm-up the first step has the peak', () => {
    expect(learningRateAt({ ...schedule, warmupRatio: 0 }, 0, 10)).toBe(0.4);
    expect(learningRateAt(schedule, 0, 1)).toBe(0.4);
  });
});

interface Run {
  readonly options: FitOptions;
  readonly positions: StepPosition[];
}

/** Two steps an epoch; validation is best with the parameters of step 4, the end of epoch 2. */
function run(changes: Partial<FitOptions> = {}): Run {
  const model = fakeModel();
  const trainer = fakeTrainer(model);
  trainer.setProjection(0, 1, 3, Float32Array.of(0.1, 0.2, 0.3));
  const positions: StepPosition[] = [];
  const options: FitOptions = {
    model,
    trainer,
    projections: [[1, 3]],
    epochs: 6,
    stepsOf: () => 2,
    schedule: { learningRate: 0.1, warmupRatio: 0.2, minLearningRateRatio: 0.1 },
    patience: 0,
    seed: 5,
    request: async (position) => {
      positions.push(position);
      return {
        inputIds: Int32Array.of(position.step % 7, position.epoch),
        sequenceOffsets: Int32Array.of(0, 2),
        labels: Int32Array.of(1, -100),
        learningRate: position.learningRate,
        dropoutSeed: position.dropoutSeed,
        losses: CROSS_ENTROPY,
        sampledNegatives: 0,
      };
    },
    validate: async () => Math.abs(countOf(model) - 4),
    describe: { step: 'teacher', name: 'fake' },
    ...changes,
  };
  return { options, positions };
}

/** Everything of a finished run that a resumed one must give again. */
async function outcome({ options }: Run, hooks?: Hooks) {
  const { epochs, bestEpoch, stepCount } = await fitModel(options, hooks);
  return {
    epochs: epochs.map(({ seconds: _, ...record }) => record),
    bestEpoch,
    stepCount,
    parameters: copyParameters(options.model),
    state: options.trainer.getState(),
    projection: options.trainer.getProjection(0),
  };
}

describe('fitModel', () => {
  test('tells each step its place, its learning rate and a dropout seed of its own', async () => {
    const { options, positions } = run({ stepsOf: (epoch) => epoch, epochs: 3 });
    await fitModel(options);
    expect(positions.map(({ epoch, index, step }) => [epoch, index, step])).toEqual([
      [1, 0, 0],
      [2, 0, 1],
      [2, 1, 2],
      [3, 0, 3],
      [3, 1, 4],
      [3, 2, 5],
    ]);
    for (const { step, totalSteps, learningRate, dropoutSeed } of positions) {
      expect(totalSteps).toBe(6);
      expect(learningRate).toBe(learningRateAt(options.schedule, step, 6));
      expect(Number.isInteger(dropoutSeed) && dropoutSeed >= 0 && dropoutSeed < 2 ** 31).toBe(true);
    }
    expect(new Set(positions.map(({ dropoutSeed }) => dropoutSeed)).size).toBe(6);
  });

  test('ends with the parameters of the best epoch', async () => {
    const { options } = run();
    const { bestEpoch, stepCount, epochs } = await fitModel(options);
    expect(epochs.map(({ validationLoss }) => validationLoss)).toEqual([2, 0, 2, 4, 6, 8]);
    expect({ bestEpoch, stepCount }).toEqual({ bestEpoch: 2, stepCount: 12 });
    expect(countOf(options.model)).toBe(4);
  });

  test('an epoch that is only as good as the best one does not replace it', async () => {
    const { options } = run({ validate: async () => 1 });
    expect((await fitModel(options)).bestEpoch).toBe(1);
    expect(countOf(options.model)).toBe(2);
  });

  test('records means over the steps of the epoch', async () => {
    const losses: number[] = [];
    const { options } = run({ epochs: 2 });
    const { epochs } = await fitModel(options, { onProgress: ({ loss }) => loss !== undefined && losses.push(loss) });
    const mean = ((losses[2] ?? 0) + (losses[3] ?? 0)) / 2;
    expect(epochs[1]).toMatchObject({
      epoch: 2,
      trainLoss: expect.closeTo(mean, 12),
      ce: expect.closeTo(2 * mean, 12),
    });
    expect(epochs[1]).toMatchObject({ kd: expect.closeTo(3 * mean, 12), attention: expect.closeTo(5 * mean, 12) });
    expect(epochs[1]?.seconds).toBeGreaterThan(0);
  });

  test('stops after `patience` epochs without a better value', async () => {
    const { options, positions } = run({ epochs: 50, patience: 2 });
    const { epochs, bestEpoch, stepCount } = await fitModel(options);
    expect({ count: epochs.length, bestEpoch, stepCount }).toEqual({ count: 4, bestEpoch: 2, stepCount: 8 });
    expect(positions).toHaveLength(8);
    expect(countOf(options.model)).toBe(4);
  });

  test('calls afterStep on the new parameters and afterEpoch with the record', async () => {
    const seen: string[] = [];
    const { options } = run({
      epochs: 2,
      afterStep: async ({ step }) => {
        seen.push(`step ${step}: ${countOf(options.model)}`);
      },
      afterEpoch: async ({ epoch }) => {
        seen.push(`epoch ${epoch}`);
      },
    });
    await fitModel(options);
    expect(seen).toEqual(['step 0: 1', 'step 1: 2', 'epoch 1', 'step 2: 3', 'step 3: 4', 'epoch 2']);
  });

  test('reports progress that ends at its total, with early stopping too', async () => {
    const events: ProgressEvent[] = [];
    const { options } = run({ epochs: 50, patience: 2 });
    await fitModel(options, { onProgress: (event) => events.push(event) });
    expect(events.slice(0, 8).map(({ done }) => done)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(events[0]).toEqual({ step: 'teacher', name: 'fake', done: 1, total: 100, loss: expect.any(Number) });
    expect(events[2]?.validationLoss).toBe(2);
    expect(events.at(-1)).toMatchObject({ done: 100, total: 100 });
  });

  test('stops between two steps when the signal is aborted', async () => {
    const controller = new AbortController();
    const { options, positions } = run();
    const fit = fitModel(options, {
      signal: controller.signal,
      onProgress: ({ done }) => done === 3 && controller.abort(),
    });
    await expect(fit).rejects.toThrow(expect.objectContaining({ code: 'ERR_ABORTED' }));
    expect(positions).toHaveLength(3);
  });
});

describe('a run with a checkpoint', () => {
  const checkpointAt = (name: string) => ({ path: join(folder, name), fingerprint: 'f', everySteps: 3 });

  test('changes nothing, and keeps its state until the caller has saved the model', async () => {
    const checkpoint = checkpointAt('complete');
    const found = await outcome(run({ checkpoint }));
    expect(found).toEqual(await outcome(run()));
    const again = run({ checkpoint });
    expect(await outcome(again)).toEqual(found);
    expect(again.positions).toEqual([]);
  });

  // States lie after steps 2, 3, 4, 6, 8, 9, 10 and 12: ends of epochs and every third step.
  test.each([
    [0, 0],
    [1, 0],
    [2, 2],
    [3, 3],
    [5, 4],
    [7, 6],
    [9, 9],
    [11, 10],
  ])('killed at step %i goes on from step %i and ends with the same bits', async (killedAt, resumedAt) => {
    const whole = await outcome(run());
    const checkpoint = checkpointAt(`killed-${killedAt}`);
    const first = run({ checkpoint });
    const request = async (position: StepPosition) => {
      if (position.step === killedAt) throw new Error('killed');
      return first.options.request(position);
    };
    await expect(fitModel({ ...first.options, request })).rejects.toThrow('killed');

    const second = run({ checkpoint });
    expect(await outcome(second)).toEqual(whole);
    expect(second.positions[0]?.step).toBe(resumedAt);
  });

  test('killed after the last step trains no more, and gives the same bits', async () => {
    const whole = await outcome(run());
    const checkpoint = checkpointAt('last');
    const kill = ({ loss }: ProgressEvent) => {
      if (loss === undefined) throw new Error('killed');
    };
    await expect(fitModel(run({ checkpoint }).options, { onProgress: kill })).rejects.toThrow('killed');
    const second = run({ checkpoint });
    expect(await outcome(second)).toEqual(whole);
    expect(second.positions).toEqual([]);
  });

  test('counts the epochs of the killed run towards its patience', async () => {
    const changes = { epochs: 50, patience: 2, checkpoint: checkpointAt('patience') };
    const first = run(changes);
    const request = async (position: StepPosition) => {
      if (position.step === 7) throw new Error('killed');
      return first.options.request(position);
    };
    await expect(fitModel({ ...first.options, request })).rejects.toThrow('killed');
    const second = run(changes);
    expect(await outcome(second)).toMatchObject({ bestEpoch: 2, stepCount: 8 });
    expect(countOf(second.options.model)).toBe(4);
  });

  test.each([1, 2, 4, 5])('aborted after %i steps goes on from there', async (stopAt) => {
    const checkpoint = checkpointAt(`aborted-${stopAt}`);
    const controller = new AbortController();
    const fit = fitModel(run({ checkpoint }).options, {
      signal: controller.signal,
      onProgress: ({ done }) => done === stopAt && controller.abort(),
    });
    await expect(fit).rejects.toThrow(expect.objectContaining({ code: 'ERR_ABORTED' }));
    const second = run({ checkpoint });
    expect(await outcome(second)).toEqual(await outcome(run()));
    expect(second.positions[0]?.step).toBe(stopAt);
  });

  test('aborted in a validation goes on with it', async () => {
    const checkpoint = checkpointAt('aborted-validation');
    const controller = new AbortController();
    const first = run({ checkpoint });
    const validate = async () => {
      if (first.positions.length === 4) controller.abort();
      throwIfAborted(controller.signal);
      return first.options.validate();
    };
    const fit = fitModel({ ...first.options, validate }, { signal: controller.signal });
    await expect(fit).rejects.toThrow(expect.objectContaining({ code: 'ERR_ABORTED' }));
    const second = run({ checkpoint });
    expect(await outcome(second)).toEqual(await outcome(run()));
    expect(second.positions[0]?.step).toBe(4);
  });

  test.each([
    ['uses the model', 'ERR_BUSY'],
    ['has disposed of it', 'ERR_DISPOSED'],
  ] as const)('aborted when somebody else %s goes on from its last checkpoint', async (_, code) => {
    const checkpoint = checkpointAt(`aborted-${code}`);
    const controller = new AbortController();
    const first = run({ checkpoint });
    const { trainer } = first.options;
    const getState = () => {
      if (controller.signal.aborted) throw new LimbeckError(code, 'no state');
      return trainer.getState();
    };
    const fit = fitModel(
      { ...first.options, trainer: { ...trainer, getState } },
      { signal: controller.signal, onProgress: ({ done }) => done === 5 && controller.abort() },
    );
    await expect(fit).rejects.toThrow(expect.objectContaining({ code: 'ERR_ABORTED' }));
    const second = run({ checkpoint });
    expect(await outcome(second)).toEqual(await outcome(run()));
    expect(second.positions[0]?.step).toBe(4);
  });

  test('refuses the state of another run before the first step', async () => {
    const checkpoint = checkpointAt('mismatch');
    const stopped = run({ checkpoint, validate: () => Promise.reject(new Error('stop')), stepsOf: () => 5 });
    await expect(fitModel(stopped.options)).rejects.toThrow('stop');
    const other = run({ checkpoint: { ...checkpoint, fingerprint: 'g' } });
    await expect(fitModel(other.options)).rejects.toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT_MISMATCH' }));
    expect(other.positions).toEqual([]);
    expect(existsSync(checkpoint.path)).toBe(true);
  });
});

describe('reading ahead', () => {
  test('asks for the next step while one runs, within an epoch, and ends with the same parameters', async () => {
    const plain = run();
    const ahead = run({ readsAhead: true });
    const inStep: number[] = [];
    const { trainer } = ahead.options;
    const step: typeof trainer.step = async (request) => {
      const asked = ahead.positions.length;
      await new Promise((resolve) => setImmediate(resolve));
      inStep.push(ahead.positions.length - asked);
      return trainer.step(request);
    };
    await fitModel(plain.options);
    const { stepSeconds, waitSeconds } = await fitModel({ ...ahead.options, trainer: { ...trainer, step } });
    expect(ahead.positions).toEqual(plain.positions);
    expect(inStep).toEqual(Array.from({ length: 12 }, (_, i) => (i % 2 === 0 ? 1 : 0)));
    expect(copyParameters(ahead.options.model)).toEqual(copyParameters(plain.options.model));
    expect(stepSeconds).toBeGreaterThan(0);
    expect(waitSeconds).toBeGreaterThanOrEqual(0);
  });

  test('a request that fails ends the run in its turn; a step that fails ends it first', async () => {
    const broken = run({ readsAhead: true });
    const request: FitOptions['request'] = async (position) => {
      if (position.step === 1) throw new Error('no data');
      return broken.options.request(position);
    };
    await expect(fitModel({ ...broken.options, request })).rejects.toThrow('no data');
    expect(countOf(broken.options.model)).toBe(1);
    const step = async () => {
      await new Promise((resolve) => setImmediate(resolve));
      throw new Error('no step');
    };
    const trainer = { ...broken.options.trainer, step };
    await expect(fitModel({ ...broken.options, request, trainer })).rejects.toThrow('no step');
  });

  test('a run that fails ends when nothing is read any more', async () => {
    const { options } = run({ readsAhead: true });
    let reading = 0;
    const request: FitOptions['request'] = async (position) => {
      reading++;
      if (position.step > 0) await new Promise((resolve) => setTimeout(resolve, 50));
      reading--;
      return options.request(position);
    };
    const step = async () => {
      throw new Error('no step');
    };
    const running = fitModel({ ...options, request, trainer: { ...options.trainer, step } });
    await expect(running).rejects.toThrow('no step');
    expect(reading).toBe(0);
  });
});

describe('steps in flight', () => {
  /** On a GPU. Steps end one after the other, some time after they were begun; `most` were on their way at once. */
  function onGpu(changes: Partial<FitOptions> = {}) {
    const made = run({ readsAhead: true, stepsOf: () => 7, epochs: 2, ...changes });
    const { model, trainer } = made.options;
    const log = { begun: 0, ended: 0, most: 0 };
    let turn: Promise<unknown> = Promise.resolve();
    const step: typeof trainer.step = (request) => {
      log.begun++;
      log.most = Math.max(log.most, log.begun - log.ended);
      const result = turn.then(async () => {
        await new Promise((resolve) => setImmediate(resolve));
        return trainer.step(request).finally(() => log.ended++);
      });
      turn = result.catch(() => {});
      return result;
    };
    const options: FitOptions = { ...made.options, model: { ...model, device: 'cuda' }, trainer: { ...trainer, step } };
    return { made: { ...made, options }, log };
  }

  test('some are begun before those before them end, with the same results', async () => {
    const { made, log } = onGpu();
    const reported: number[] = [];
    const onProgress = ({ done }: ProgressEvent) => reported.push(done);
    expect(await outcome(made, { onProgress })).toEqual(await outcome(run({ stepsOf: () => 7, epochs: 2 })));
    expect(log).toEqual({ begun: 14, ended: 14, most: 3 });
    expect(made.positions.map(({ step }) => step)).toEqual(Array.from({ length: 14 }, (_, step) => step));
    expect(reported).toEqual([...Array.from({ length: 14 }, (_, step) => step + 1), 14]);
  });

  test('not on the processor, nor where something comes after each, nor where requests cannot be made ahead', async () => {
    for (const changes of [{ afterStep: async () => {} }, { readsAhead: false }]) {
      const { made, log } = onGpu(changes);
      await fitModel(made.options);
      expect(log.most).toBe(1);
    }
    const { made, log } = onGpu();
    await fitModel({ ...made.options, model: { ...made.options.model, device: 'cpu' } });
    expect(log.most).toBe(1);
  });

  test('none is when an epoch is validated or a checkpoint is written', async () => {
    const checkpoint = { path: join(folder, 'flight.bin'), fingerprint: 'f', everySteps: 3 };
    const { made, log } = onGpu({ checkpoint });
    const { validate, trainer } = made.options;
    const saved: number[] = [];
    const options: FitOptions = {
      ...made.options,
      trainer: {
        ...trainer,
        getState: () => {
          saved.push(log.ended);
          expect(log.begun).toBe(log.ended);
          return trainer.getState();
        },
      },
      validate: () => {
        expect(log.begun).toBe(log.ended);
        return validate();
      },
    };
    await fitModel(options);
    expect(saved).toEqual([3, 6, 7, 9, 12, 14]);
    expect(log.most).toBe(3);
  });

  test('none is when a run that is aborted keeps its state', async () => {
    const checkpoint = { path: join(folder, 'aborted-flight.bin'), fingerprint: 'f', everySteps: 100 };
    const controller = new AbortController();
    const { made, log } = onGpu({ checkpoint });
    const getState = () => {
      expect(log.begun).toBe(log.ended);
      return made.options.trainer.getState();
    };
    const fit = fitModel(
      { ...made.options, trainer: { ...made.options.trainer, getState } },
      { signal: controller.signal, onProgress: ({ done }) => done === 2 && controller.abort() },
    );
    await expect(fit).rejects.toThrow(expect.objectContaining({ code: 'ERR_ABORTED' }));
    expect(log.most).toBe(3);
    const second = onGpu({ checkpoint });
    await fitModel(second.made.options);
    const whole = onGpu();
    await fitModel(whole.made.options);
    expect(copyParameters(second.made.options.model)).toEqual(copyParameters(whole.made.options.model));
    expect(second.made.positions[0]?.step).toBe(log.ended);
  });

  test('a failure is told in its turn, and nothing is at work when the run ends', async () => {
    const { made, log } = onGpu();
    const reported: number[] = [];
    const request: FitOptions['request'] = async (position) => {
      if (position.step === 4) throw new Error('no data');
      return made.options.request(position);
    };
    const onProgress = ({ done }: ProgressEvent) => reported.push(done);
    await expect(fitModel({ ...made.options, request }, { onProgress })).rejects.toThrow('no data');
    expect(reported).toEqual([1, 2, 3, 4]);
    const controller = new AbortController();
    const aborted = onGpu();
    const running = fitModel(aborted.made.options, {
      signal: controller.signal,
      onProgress: ({ done }) => done === 2 && controller.abort(),
    });
    await expect(running).rejects.toThrow(expect.objectContaining({ code: 'ERR_ABORTED' }));
    expect(aborted.log.begun).toBe(aborted.log.ended);
    const { trainer } = made.options;
    let steps = 0;
    const step: typeof trainer.step = (asked) =>
      ++steps === 2 ? Promise.reject(new Error('lost')) : trainer.step(asked);
    await expect(fitModel({ ...made.options, trainer: { ...trainer, step } })).rejects.toThrow('lost');
    expect(log.begun).toBe(log.ended);
  });
});
