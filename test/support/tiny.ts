/** A small world that a distillation learns in a few seconds. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DistillOptions } from '../../src/engine/options.js';

const USERS = 60;
const ITEMS = 40;
const LENGTH = 12;
const GENRES = ['comedy', 'drama', 'horror', 'western'];

/** Writes interactions.csv and items.csv: every user walks the catalogue in steps of 1, from another start. */
export function writeTinyData(folder: string): { interactions: string; items: string } {
  mkdirSync(folder, { recursive: true });
  const rows = ['user,item,rating,time'];
  for (let user = 0; user < USERS; user++) {
    for (let i = 0; i < LENGTH; i++) rows.push(`u${user},i${(user * 7 + i) % ITEMS},8,${1000 + user * 100 + i}`);
  }
  const items = ['id,title,genre'];
  for (let item = 0; item < ITEMS; item++) items.push(`i${item},Film number ${item},${GENRES[item % GENRES.length]}`);
  const paths = { interactions: join(folder, 'interactions.csv'), items: join(folder, 'items.csv') };
  writeFileSync(paths.interactions, `${rows.join('\n')}\n`);
  writeFileSync(paths.items, `${items.join('\n')}\n`);
  return paths;
}

/** Options of a distillation over {@link writeTinyData} that takes about two seconds. */
export function tinyOptions(folder: string, output = join(folder, 'out')): DistillOptions {
  const { interactions, items } = writeTinyData(folder);
  const architecture = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 12, dropout: 0.1 };
  return {
    title: 'Tiny',
    output,
    seeds: [3],
    data: {
      interactions: { path: interactions, columns: { user: 'user', item: 'item', rating: 'rating', time: 'time' } },
      items: { path: items, columns: { id: 'id', text: ['title', 'genre'], categories: 'genre' } },
    },
    teacher: {
      architecture: { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxPositionEmbeddings: 32 },
      tokenizer: { vocabSize: 300 },
      training: { epochs: 1, batchTokens: 512 },
    },
    corpus: { maxHistory: 3, heldOut: 0.1 },
    knowledge: { components: 8 },
    sequenceTeacher: { architecture, training: { epochs: 2, batchTokens: 256 } },
    student: {
      architecture,
      training: { epochs: 3, batchTokens: 128, losses: { ce: 0.5, kd: 0.5, temperature: 2, gate: 1 } },
    },
    languageStudent: {
      architecture: { hiddenSize: 8, numHiddenLayers: 1, numAttentionHeads: 2, maxPositionEmbeddings: 32 },
      initialise: 'width',
      importance: 'fisher',
      interpolation: { alpha: 0.05, weights: 'fisher' },
      training: { epochs: 2, batchTokens: 512 },
    },
    evaluation: { examples: 4 },
  };
}
