/** Settings for data sets of the literature, as they are published: nothing is filtered, and the counts are checked. */
import { join } from 'node:path';
import type { QualityOptions } from './quality-options.js';

interface QualityRecipe {
  /** Usual name of the folder that holds the files. */
  readonly folder: string;
  /** Files that must lie in it. */
  readonly files: readonly string[];
  /** What products are rounded to, where nothing else is said. */
  readonly precision: 'float32' | 'fastest';
  /** @param encoder a model2vec directory; without one, texts are known by the catalogue's own words alone */
  options(directory: string, encoder?: string): Omit<QualityOptions, 'output'>;
}

const staticTeacher = (directory: string | undefined) => ({
  static: { lexicalComponents: 128, ...(directory === undefined ? {} : { directory }) },
});

/** Teacher and student of a set are of one size: what the student gains is not size. */
const architectureOf = (maxHistory: number, dropout: number) =>
  ({ hiddenSize: 128, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory, dropout, normPlacement: 'after' }) as const;

const asPublished = { minUserInteractions: 1, minItemInteractions: 1, duplicates: 'all' } as const;

/** Amazon Beauty, 5-core, as S3-Rec (Zhou et al. 2020) and those after it use it. */
const beauty: QualityRecipe = {
  folder: 'amazon-beauty',
  files: ['sequences.txt', 'items.tsv'],
  precision: 'fastest',
  options: (directory, encoder) => ({
    title: 'Amazon Beauty',
    data: {
      interactions: {
        path: join(directory, 'sequences.txt'),
        format: 'sequences',
        columns: { user: 'user', item: 'item' },
      },
      items: { path: join(directory, 'items.tsv'), columns: { id: 'item', text: ['title'] } },
      denoise: asPublished,
    },
    expected: { users: 22_363, items: 12_101, interactions: 198_502 },
    published: [
      {
        name: 'SASRec, sampled softmax',
        source: 'blondered/transformer_benchmark (RecSys 2025), same files, full ranking, seen items filtered',
        recallAt10: 0.0921,
        ndcgAt10: 0.0531,
      },
    ],
    teacher: staticTeacher(encoder),
    knowledge: { components: 128 },
    sequenceTeacher: {
      architecture: architectureOf(50, 0.4),
      training: { epochs: 12, learningRate: 1e-3, batchTokens: 1024, patience: 3 },
    },
    student: {
      architecture: architectureOf(50, 0.4),
      training: {
        epochs: 16,
        learningRate: 1e-3,
        batchTokens: 1024,
        patience: 3,
        losses: { ce: 0.5, kd: 0.5, gate: 0.2 },
      },
    },
  }),
};

const softLabels = { ce: 0.5, kd: 0.5 };

/** From trained weights, the learning rate rises and falls once more; what it costs at first must not end the training. */
const continued = { epochs: 14, patience: 0 };

/** MovieLens-1M in the order of the SASRec and BERT4Rec repositories: many times are equal, so the file's order counts. */
const ml1m: QualityRecipe = {
  folder: 'ml-1m',
  files: ['ml-1m.txt', 'items.tsv'],
  precision: 'fastest',
  options: (directory, encoder) => ({
    title: 'MovieLens-1M',
    data: {
      interactions: {
        path: join(directory, 'ml-1m.txt'),
        format: 'csv',
        delimiter: ' ',
        names: ['user', 'item'],
        columns: { user: 'user', item: 'item' },
      },
      items: {
        path: join(directory, 'items.tsv'),
        columns: { id: 'item', text: ['title', 'genres'], categories: 'genres' },
        categorySeparator: '|',
      },
      denoise: asPublished,
    },
    expected: { users: 6040, items: 3416, interactions: 999_611 },
    published: [
      {
        name: 'SASRec, cross-entropy',
        source: 'antklen/sasrec-bert4rec-recsys23 (RecSys 2023), same file, full ranking, seen items filtered',
        recallAt10: 0.3152,
        ndcgAt10: 0.1821,
      },
    ],
    teacher: staticTeacher(encoder),
    knowledge: { components: 128 },
    // No item is cold and histories are long: item vectors of the texts are worth nothing here (docs/quality.md).
    sequenceTeacher: {
      members: 4,
      itemFeatures: false,
      architecture: architectureOf(200, 0.2),
      training: { epochs: 20, learningRate: 1e-3, batchTokens: 4096, patience: 4 },
    },
    student: {
      architecture: architectureOf(200, 0.2),
      training: { epochs: 20, learningRate: 1e-3, batchTokens: 4096, patience: 4 },
    },
    students: {
      plain: { name: 'plain student' },
      vectors: { name: 'frozen teacher vectors + adapter', itemFeatures: true },
      'soft-labels': { name: 'soft labels alone', training: { losses: softLabels } },
      initialisation: { name: 'initialisation alone', initialise: 'width', training: continued },
      distilled: { name: 'distilled student', initialise: 'width', training: { ...continued, losses: softLabels } },
    },
  }),
};

export const QUALITY_RECIPES: Readonly<Record<string, QualityRecipe>> = { beauty, 'ml-1m': ml1m };
