import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadBinding, type NativeEngine, type StepRequest } from '../../../src/binding.js';
import { doctorCommand } from '../../../src/cli/doctor.js';
import { createEngine } from '../../../src/index.js';
import { describeEmulated, type EmulatedMachine, emulatedEngine, libraryOn } from '../../support/emulated-cuda.js';
import { tinyOptions } from '../../support/tiny.js';
import { createTinyModel, TINY_MODELS, tinyBatch } from '../../support/tiny-models.js';

const STEP = {
  learningRate: 0.01,
  dropoutSeed: -1,
  losses: { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 },
  sampledNegatives: 0,
} as const;

const OPTIMIZER = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0,
  momentum: 0,
  maxGradNorm: 0,
} as const;

function trainerOn(engine: NativeEngine) {
  const model = createTinyModel(engine, TINY_MODELS.gpt2, 1);
  const step: StepRequest = { ...STEP, ...tinyBatch(TINY_MODELS.gpt2) };
  return { model, trainer: engine.createTrainer(model, OPTIMIZER), step };
}

async function stepsOnCpu(): Promise<number> {
  const engine = loadBinding().createEngine({ threads: 1 });
  try {
    const { trainer, step } = trainerOn(engine);
    return (await trainer.step(step)).loss;
  } finally {
    engine.dispose();
  }
}

function doctor(): string {
  const stdout = new PassThrough();
  expect(doctorCommand({}, { streams: { stdout, stderr: new PassThrough() } })).toBe(true);
  return String(stdout.read());
}

describeEmulated('a machine', () => {
  afterEach(() => {
    delete process.env['LIMBECK_CUDA_LIBRARY'];
  });

  test.each<[string, EmulatedMachine, RegExp]>([
    ['without a driver', { driver_version: 0 }, /no NVIDIA driver was found/],
    ['with an old driver', { driver_version: 12020 }, /driver is too old: it runs CUDA 12\.2, CUDA 13\.0 is needed/],
    ['without a GPU', { num_devices: 0 }, /sees no GPU/],
    ['without cuBLASLt', { has_cublas: 0 }, /libcublasLt\.so\.13 .*was not found/],
    ['with a GPU that is too old', { major: 7, minor: 5 }, /compute capability 7\.5; 8\.0 or later/],
  ])('%s is told so, and keeps its processor', async (_, machine, reason) => {
    process.env['LIMBECK_CUDA_LIBRARY'] = libraryOn(machine);
    await expect(createEngine({ device: 'cuda', threads: 1 })).rejects.toMatchObject({
      code: 'ERR_CUDA_UNAVAILABLE',
      message: expect.stringMatching(reason),
    });
    const engine = await createEngine({ threads: 1 });
    expect(engine.device).toBe('cpu');
    engine.dispose();
    expect(doctor()).toMatch(reason);
    expect(await stepsOnCpu()).toBeGreaterThan(0);
  });

  test('with a GPU uses it', async () => {
    process.env['LIMBECK_CUDA_LIBRARY'] = libraryOn({ num_devices: 2, major: 9 });
    const engine = await createEngine({ threads: 1, deviceIndex: 1, precision: 'fastest', tuneProducts: true });
    expect(engine).toMatchObject({ device: 'cuda', precision: 'bfloat16' });
    expect(engine.deviceName).not.toBe('');
    engine.dispose();
    await expect(createEngine({ device: 'cuda', deviceIndex: 2 })).rejects.toMatchObject({
      code: 'ERR_CUDA_UNAVAILABLE',
      message: expect.stringContaining('no device 2'),
    });
    const report = doctor();
    expect(report).toMatch(/^backends .*cuda: ready, 2 GPUs$/m);
    expect(report).toMatch(/^cuda .*driver for CUDA 13\.0/m);
    expect(report).toMatch(/^gpu 1 .*capability 9\.0, \d+\.\d GiB free of 4\.0 GiB$/m);
  });

  test('with a GPU that others fill keeps its processor', async () => {
    process.env['LIMBECK_CUDA_LIBRARY'] = libraryOn({ total_bytes: 64 << 20, used_by_others_bytes: 64 << 20 });
    await expect(createEngine({ device: 'cuda', threads: 1 })).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    const engine = await createEngine({ threads: 1 });
    expect(engine.device).toBe('cpu');
    engine.dispose();
  });

  test('with too little memory refuses the first step, with the bytes', async () => {
    const engine = emulatedEngine({ machine: { total_bytes: 64 << 20, used_by_others_bytes: 56 << 20 } });
    const { model, trainer, step } = trainerOn(engine);
    const before = model.getParameter('embeddings.word');
    const repeats = 200;
    const { length } = step.inputIds;
    const large = (values: Int32Array) =>
      Int32Array.from({ length: length * repeats }, (_, i) => values[i % length] ?? 0);
    const offsets = Int32Array.from(
      { length: 4 * repeats + 1 },
      (_, i) => Math.floor(i / 4) * length + (step.sequenceOffsets[i % 4] ?? 0),
    );
    const request = { ...step, inputIds: large(step.inputIds), labels: large(step.labels), sequenceOffsets: offsets };
    await expect(trainer.step(request)).rejects.toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
      message: expect.stringMatching(/needs \d+ MiB of memory more, \d+ MiB of 64 MiB are free/),
    });
    expect(model.getParameter('embeddings.word')).toEqual(before);
    expect((await trainer.step(step)).loss).toBeGreaterThan(0);
    engine.dispose();
  });
});

describeEmulated('a GPU that is lost', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'limbeck-lost-'));
  });
  afterEach(() => {
    delete process.env['LIMBECK_CUDA_LIBRARY'];
    rmSync(folder, { recursive: true });
  });

  test('ends all work on it with one code, and no other work', async () => {
    const engine = emulatedEngine({ machine: { calls_until_lost: 150 } });
    const { model, trainer, step } = trainerOn(engine);
    const codes: string[] = [];
    for (let i = 0; i < 20; i++) {
      await trainer.step(step).catch(({ code }) => codes.push(code));
    }
    expect(codes.length).toBeGreaterThan(2);
    expect(codes.length).toBeLessThan(20);
    expect(new Set(codes)).toEqual(new Set(['ERR_DEVICE_LOST']));
    // What the GPU had is gone; what was never there is not.
    expect(() => model.getParameter('embeddings.word')).toThrow(expect.objectContaining({ code: 'ERR_DEVICE_LOST' }));
    await expect(model.forward({ ...tinyBatch(TINY_MODELS.gpt2), hiddenStates: [0] })).rejects.toMatchObject({
      code: 'ERR_DEVICE_LOST',
    });
    expect(await stepsOnCpu()).toBeGreaterThan(0);
    engine.dispose();
  });

  test('in the middle of a distillation leaves no output, and the next run goes on', async () => {
    process.env['LIMBECK_CUDA_LIBRARY'] = libraryOn({ calls_until_lost: 3000 });
    const engine = await createEngine({ device: 'cuda', threads: 1 });
    const options = tinyOptions(folder);
    await expect(engine.distill(options)).rejects.toMatchObject({ code: 'ERR_DEVICE_LOST' });
    engine.dispose();
    const output = join(folder, 'out');
    const left = existsSync(output) ? readdirSync(output).filter((name) => !name.startsWith('.unfinished')) : [];
    expect(left).toEqual([]);

    process.env['LIMBECK_CUDA_LIBRARY'] = libraryOn();
    const next = await createEngine({ device: 'cuda', threads: 1 });
    await next.distill(options);
    next.dispose();
    expect(readdirSync(output)).toContain('student');
    expect(existsSync(join(output, '.unfinished'))).toBe(false);
  }, 300_000);
});
