/** Every loss, with every form of what a teacher can say, for tiny models. */
import {
  type LossOptions,
  loadBinding,
  type NativeEngine,
  type NativeTransformer,
  type StepRequest,
  type TeacherSignal,
  type TransformerConfig,
} from '../../src/binding.js';
import { createTinyModel, TINY_MODELS, tinyBatch, wave } from './tiny-models.js';

export const NO_LOSS: LossOptions = {
  ce: 0,
  kd: 0,
  hidden: 0,
  attention: 0,
  relation: 0,
  temperature: 2,
  fusion: 0.75,
  gate: 0.5,
};

/** What the teacher says to a student on this engine. */
export type Signal = (engine: NativeEngine, numTokens: number) => Promise<Told> | Told;
type Told = TeacherSignal | readonly TeacherSignal[];

export const TEACHER: TransformerConfig = { ...TINY_MODELS.gpt2, hiddenSize: 24, headDim: 12, numHiddenLayers: 3 };

export function teacherOn(engine: NativeEngine, { typeVocabSize }: TransformerConfig): NativeTransformer {
  return createTinyModel(engine, { ...TEACHER, typeVocabSize }, 8);
}

/** What the teacher says, computed on the processor, so that all students hear the same. */
async function extracted({ typeVocabSize, ...config }: TransformerConfig, relationHeads: number) {
  const engine = loadBinding().createEngine({ threads: 1 });
  try {
    const { labels, ...batch } = tinyBatch({ ...config, typeVocabSize });
    return await teacherOn(engine, { ...config, typeVocabSize }).forward({
      ...batch,
      hiddenStates: [3, 1],
      attentions: [3, 1],
      valueRelations: [3, 1],
      relationHeads,
      logits: 'dense',
    });
  } finally {
    engine.dispose();
  }
}

export const LAYERS: TeacherSignal['layerMap'] = [
  [2, 3],
  [1, 1],
];

export const extractedStates = (config: TransformerConfig) => async () => ({
  layerMap: LAYERS,
  hidden: (await extracted(config, 2)).hiddenStates,
});

type Loss = readonly [
  name: string,
  losses: Partial<LossOptions>,
  signal: ((config: TransformerConfig) => Signal) | undefined,
  others?: Partial<StepRequest> | undefined,
];

/** Each loss, with each form of what it is told. */
const LOSSES: Loss[] = [
  ['ce', { ce: 1 }, undefined],
  ['ce with dropout', { ce: 1 }, undefined, { dropoutSeed: 5 }],
  ['ce over sampled negatives', { ce: 1 }, undefined, { sampledNegatives: 9, dropoutSeed: 4 }],
  [
    'everything of a model',
    { ce: 0.5, kd: 0.5, hidden: 0.3, attention: 0.2, relation: 0.4 },
    (config) => (engine) => ({
      model: teacherOn(engine, config),
      layerMap: LAYERS,
      relationHeads: 2,
    }),
  ],
  [
    'kd of dense logits',
    { kd: 1 },
    (config) => async () => ({
      layerMap: [],
      logits: { dense: (await extracted(config, 2)).logits ?? new Float32Array() },
    }),
  ],
  [
    'kd of the best logits',
    { ce: 0.1, kd: 1, fusion: 1 },
    (config) => (_, numTokens) => ({
      layerMap: [],
      logits: {
        topK: 3,
        indices: Int32Array.from({ length: numTokens * 3 }, (_, i) => (i * 5 + (i % 3)) % config.vocabSize),
        values: wave(numTokens * 3, 2),
        logSumExp: new Float32Array(numTokens).fill(4),
      },
    }),
  ],
  [
    'kd of packed logits',
    { kd: 1 },
    ({ vocabSize }) =>
      (_, numTokens) => ({
        layerMap: [],
        logits: {
          topK: 3,
          packed: loadBinding().packTopK({
            indices: Int32Array.from({ length: numTokens * 3 }, (_value, i) => (i * 5 + (i % 3)) % vocabSize),
            values: wave(numTokens * 3, 2),
            logSumExp: new Float32Array(numTokens).fill(4),
            topK: 3,
            vocabSize,
          }),
        },
      }),
  ],
  [
    'kd of states and a head',
    { kd: 1 },
    (config) => async (engine) => ({
      layerMap: [],
      logits: {
        hidden: (await extracted(config, 2)).hiddenStates[0] ?? new Float32Array(),
        head: teacherOn(engine, config),
      },
    }),
  ],
  ['states', { hidden: 1 }, extractedStates],
  [
    'maps',
    { attention: 1 },
    (config) => async () => ({
      layerMap: LAYERS,
      attentions: (await extracted(config, 2)).attentions,
    }),
  ],
  [
    'relations',
    { relation: 1 },
    (config) => async () => ({
      layerMap: LAYERS,
      relations: (await extracted(config, 4)).valueRelations,
      relationHeads: 4,
    }),
  ],
];

/** A step of a tiny model by one of LOSSES. */
export async function tinyStep(
  engine: NativeEngine,
  config: TransformerConfig,
  losses: Partial<LossOptions>,
  signal: ((config: TransformerConfig) => Signal) | undefined,
  others: Partial<StepRequest> = {},
): Promise<StepRequest> {
  const batch = tinyBatch(config);
  const teacher = await signal?.(config)(engine, batch.inputIds.length);
  return {
    ...batch,
    learningRate: 0.01,
    dropoutSeed: -1,
    losses: { ...NO_LOSS, ...losses },
    sampledNegatives: 0,
    ...(teacher === undefined ? {} : { teacher }),
    ...others,
  };
}

/** Dropout everywhere, which only shows with a seed. */
export const withDropout = (config: TransformerConfig) => ({
  ...config,
  embeddingDropout: 0.1,
  attentionDropout: 0.2,
  hiddenDropout: 0.15,
});

const SEVERAL_TEACHERS: Loss = [
  'several teachers',
  { ce: 0.5, kd: 0.5, hidden: 0.3, attention: 0.2, relation: 0.4 },
  (config) => async (engine, numTokens) => {
    const states = await extracted(config, 2);
    const hidden = states.hiddenStates.toReversed();
    return [
      { model: teacherOn(engine, config), weight: 0.25, layerMap: LAYERS, relationHeads: 2 },
      {
        layerMap: LAYERS.toReversed(),
        weight: 2,
        hidden,
        attentions: states.attentions.toReversed(),
        relations: states.valueRelations.toReversed(),
        relationHeads: 2,
        logits: { dense: wave(numTokens * config.vocabSize, 3) },
      },
    ];
  },
];

const crossed = (kinds: readonly (keyof typeof TINY_MODELS)[], all: readonly Loss[]) =>
  kinds.flatMap((kind) => all.map(([name, losses, signal, others]) => [kind, name, losses, signal, others] as const));
/** Each kind of model by each loss. The teacher has two heads; maps of four have nothing to be compared with. */
export const POSSIBLE = crossed(Object.keys(TINY_MODELS) as (keyof typeof TINY_MODELS)[], LOSSES).filter(
  ([kind, , { attention = 0 }]) => kind !== 'llama' || attention === 0,
);
/** What a GPU does not take: two teachers, a model and arrays, each by its weight. */
export const SEVERAL = crossed(['gpt2', 'bert', 'sequence'], [SEVERAL_TEACHERS]);
