/** Weights that others trained and measured: our evaluation must give the figures that they publish. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { loadBinding, type NativeTransformer, type TransformerConfig } from '../../src/binding.js';
import { rankingMetrics } from '../../src/evaluate/metrics.js';
import { evaluationSet } from '../../src/evaluate/recommendation.js';
import { asFloat32, readSafetensors } from '../../src/formats/safetensors.js';
import { beautyIsMissing, readBeauty, sharedData } from '../support/beauty.js';
import { runProgram } from '../support/run-program.js';

const weights = join(sharedData, 'models/iclrec-beauty/ICLRec-Beauty-1.pt');
const reason = beautyIsMissing ?? (existsSync(weights) ? undefined : `skipped: there is no ${weights}`);

const ITEMS = 12_101;
const POSITIONS = 50;
const WIDTH = 64;
/** SASRec as ICLRec trains it: a BERT block that reads causally, without an output bias. */
const CONFIG: TransformerConfig = {
  vocabSize: ITEMS,
  hiddenSize: WIDTH,
  numHiddenLayers: 1,
  numAttentionHeads: 2,
  numKeyValueHeads: 2,
  headDim: WIDTH / 2,
  intermediateSize: 4 * WIDTH,
  maxPositionEmbeddings: POSITIONS,
  typeVocabSize: 0,
  norm: 'layerNorm',
  normPlacement: 'after',
  normEps: 1e-12,
  positions: 'learned',
  ropeTheta: 10_000,
  attention: 'causal',
  hiddenAct: 'gelu',
  qkvBias: true,
  attentionOutputBias: true,
  mlpBias: true,
  tieWordEmbeddings: true,
  maskedLmHead: false,
  itemFeatureSize: 0,
  embeddingDropout: 0,
  attentionDropout: 0,
  hiddenDropout: 0,
};

test.skipIf(reason !== undefined)(
  `ICLRec's weights have the figures that their authors publish for Beauty${reason === undefined ? '' : ` (${reason})`}`,
  async () => {
    const dataset = await readBeauty();
    const test = evaluationSet(dataset, 'test');
    const { users, items, interactions } = dataset.report.final;
    expect([users, items, interactions, test.targets.length]).toEqual([22_363, ITEMS, 198_502, 22_363]);

    const engine = loadBinding().createEngine({ threads: 2, precision: 'float32' });
    try {
      const model = engine.createTransformer(CONFIG);
      const positions = await fill(
        model,
        dataset.items.map(({ id }) => Number(id)),
      );
      const ranks = new Int32Array(test.targets.length);
      for (let length = 1; length <= POSITIONS; length++) {
        const isIn = (s: number) => Math.min(POSITIONS, lengthOf(test.sequenceOffsets, s)) === length;
        const cases = Array.from(test.targets.keys()).filter(isIn);
        if (cases.length === 0) continue;
        // They pad on the left, so that a history of t items has the last t positions.
        model.setParameter('embeddings.position', shifted(positions, POSITIONS - length));
        const recommender = engine.createRecommender(model);
        const histories = cases.map((s) => slice(test.sequences, test.sequenceOffsets, s).slice(-length));
        const excluded = cases.map((s) => slice(test.excludeIds, test.excludeOffsets, s));
        const ranked = await recommender.rank({
          inputIds: Int32Array.from(histories.flatMap((ids) => [...ids])),
          sequenceOffsets: offsetsOf(histories),
          targets: Int32Array.from(cases, (s) => test.targets[s] ?? 0),
          excludeIds: Int32Array.from(excluded.flatMap((ids) => [...ids])),
          excludeOffsets: offsetsOf(excluded),
          topK: 0,
        });
        recommender.dispose();
        cases.forEach((s, i) => {
          ranks[s] = ranked.ranks[i] ?? 0;
        });
      }
      model.dispose();

      const { hitRateAtK, ndcgAtK } = rankingMetrics(ranks, { ks: [5, 10, 20], numItems: ITEMS });
      const rounded = (values: object) => Object.values(values).map((value) => value.toFixed(4));
      expect(rounded(hitRateAtK)).toEqual(['0.0500', '0.0744', '0.1058']);
      expect(rounded(ndcgAtK)).toEqual(['0.0326', '0.0403', '0.0483']);
    } finally {
      engine.dispose();
    }
  },
  120_000,
);

/** Sets all but the positions, which it returns, [50, 64]. Row 0 of the file's item table is padding, the last a mask. */
async function fill(model: NativeTransformer, itemIds: readonly number[]): Promise<Float32Array> {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-iclrec-'));
  try {
    const path = join(folder, 'model.safetensors');
    const program = join(import.meta.dirname, '../support/read-torch-pickle.py');
    const { status, stderr } = runProgram('python3', [program, weights, path]);
    expect(status, stderr).toBe(0);
    const { tensors } = await readSafetensors(path);
    const read = (name: string): Float32Array => {
      const tensor = tensors.get(name);
      if (tensor === undefined) throw new Error(`'${weights}' has no tensor '${name}'`);
      return asFloat32(tensor);
    };
    const set = (name: string, ...sources: string[]) =>
      model.setParameter(name, Float32Array.from(sources.flatMap((source) => [...read(source)])));
    const table = read('item_embeddings.weight');
    const rows = new Float32Array(ITEMS * WIDTH);
    itemIds.forEach((id, row) => {
      rows.set(table.subarray(id * WIDTH, (id + 1) * WIDTH), row * WIDTH);
    });
    model.setParameter('embeddings.word', rows);
    const block = 'item_encoder.layer.0';
    for (const kind of ['weight', 'bias']) {
      set(`embeddings.norm.${kind}`, `LayerNorm.${kind}`);
      set(
        `layers.0.attention.qkv.${kind}`,
        ...['query', 'key', 'value'].map((part) => `${block}.attention.${part}.${kind}`),
      );
      set(`layers.0.attention.output.${kind}`, `${block}.attention.dense.${kind}`);
      set(`layers.0.attention_norm.${kind}`, `${block}.attention.LayerNorm.${kind}`);
      set(`layers.0.mlp.input.${kind}`, `${block}.intermediate.dense_1.${kind}`);
      set(`layers.0.mlp.output.${kind}`, `${block}.intermediate.dense_2.${kind}`);
      set(`layers.0.mlp_norm.${kind}`, `${block}.intermediate.LayerNorm.${kind}`);
    }
    return read('position_embeddings.weight');
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Rows from `first` on; those beyond the end are zeros, which no history reaches. */
function shifted(positions: Float32Array, first: number): Float32Array {
  const rows = new Float32Array(positions.length);
  rows.set(positions.subarray(first * WIDTH));
  return rows;
}

function lengthOf(offsets: Int32Array, s: number): number {
  return (offsets[s + 1] ?? 0) - (offsets[s] ?? 0);
}

function slice(ids: Int32Array, offsets: Int32Array, s: number): Int32Array {
  return ids.subarray(offsets[s], offsets[s + 1]);
}

function offsetsOf(lists: readonly { readonly length: number }[]): Int32Array {
  const offsets = new Int32Array(lists.length + 1);
  lists.forEach(({ length }, i) => {
    offsets[i + 1] = (offsets[i] ?? 0) + length;
  });
  return offsets;
}
