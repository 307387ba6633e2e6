/** Settings for data sets of the literature, as they are published: nothing is filtered, and the counts are checked. */
import { join } from 'node:path';
import type { QualityOptions } from './quality-options.js';

interface QualityRecipe {
  /** Usual name of the folder that holds the files. */
  readonly folder: string;
  /** Files that must lie in it. */
  readonly files: readonly string[];
  options(directory: string): Omit<QualityOptions, 'output'>;
}

const asPublished = { minUserInteractions: 1, minItemInteractions: 1, duplicates: 'all' } as const;

/** Amazon Beauty, 5-core, as S3-Rec (Zhou et al. 2020) and those after it use it. */
const beauty: QualityRecipe = {
  folder: 'amazon-beauty',
  files: ['sequences.txt', 'items.tsv'],
  options: (directory) => ({
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
    corpus: { maxHistory: 4, heldOut: 0.02 },
    knowledge: { components: 64 },
    sequenceTeacher: {
      architecture: { hiddenSize: 128, numAttentionHeads: 2, maxHistory: 50, dropout: 0.5 },
      training: { epochs: 24, learningRate: 1e-3, batchTokens: 2048, patience: 4 },
    },
    student: {
      architecture: { hiddenSize: 128, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: 50, dropout: 0.4 },
      training: {
        epochs: 24,
        learningRate: 1e-3,
        batchTokens: 2048,
        patience: 4,
        losses: { ce: 0.7, kd: 0.3, gate: 0.2 },
      },
    },
  }),
};

/** MovieLens-1M in the order of the SASRec and BERT4Rec repositories: many times are equal, so the file's order counts. */
const ml1m: QualityRecipe = {
  folder: 'ml-1m',
  files: ['ml-1m.txt', 'items.tsv'],
  options: (directory) => ({
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
    corpus: { maxHistory: 8, heldOut: 0.02 },
    knowledge: { components: 48 },
    sequenceTeacher: {
      architecture: { hiddenSize: 128, numAttentionHeads: 2, maxHistory: 200, dropout: 0.2 },
      training: { epochs: 60, learningRate: 1e-3, batchTokens: 4096, patience: 6 },
    },
    student: {
      architecture: { hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 1, maxHistory: 200, dropout: 0.1 },
      training: {
        epochs: 60,
        learningRate: 1e-3,
        batchTokens: 4096,
        patience: 6,
        losses: { ce: 0.7, kd: 0.3, gate: 0.2 },
      },
    },
  }),
};

export const QUALITY_RECIPES: Readonly<Record<string, QualityRecipe>> = { beauty, 'ml-1m': ml1m };
