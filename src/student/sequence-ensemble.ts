/** Sequence models whose logits are averaged: better than each of them, and a teacher like one. */
import { join } from 'node:path';
import { checkInstance, checkList, checkObject } from '../arguments.js';
import type { NativeEngine, NativeTransformer, PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { writeDirectoryAtomic } from '../formats/files.js';
import type { EvaluationCases } from '../prepare/dataset.js';
import type { Hooks } from '../prepare/hooks.js';
import { sideBySide } from '../teacher/side-by-side.js';
import { type Ranking, type RankOptions, rankCases } from './rank-cases.js';
import { SequenceModel, sequenceConfig } from './sequence-model.js';

export class SequenceEnsemble {
  private constructor(
    private readonly engine: NativeEngine,
    readonly members: readonly SequenceModel[],
    /**
     * Its output table [V, Σ d] has the members' side by side, each times its share: against their states side by side it
     * gives the weighted mean of their logits. Of one member, the member itself.
     */
    readonly head: NativeTransformer,
  ) {}

  /**
   * Takes the members over: they are disposed of with it.
   *
   * @param members at least one, over the same items, all of the same shape
   * @param options.weights of the members in the mean of the logits, > 0; their sum does not matter. @defaultValue equal
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY
   */
  static of(
    engine: NativeEngine,
    members: readonly SequenceModel[],
    options: { readonly weights?: readonly number[] } = {},
  ): SequenceEnsemble {
    checkList(members, 'members', 'a list of sequence models');
    members.forEach((member, i) => {
      checkInstance(member, SequenceModel, `members[${i}]`);
    });
    checkObject(options, 'options', '{ weights }');
    const { weights = members.map(() => 1) } = options;
    const [first, ...others] = members;
    if (first === undefined) throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Expected at least one member, got none');
    const { vocabSize, hiddenSize, numHiddenLayers, maxPositionEmbeddings } = first.config;
    for (const { config } of others) {
      if (
        config.vocabSize !== vocabSize ||
        config.hiddenSize !== hiddenSize ||
        config.numHiddenLayers !== numHiddenLayers ||
        config.maxPositionEmbeddings !== maxPositionEmbeddings
      ) {
        throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Expected members of one shape over the same items');
      }
    }
    checkWeights(weights, members.length);
    return new SequenceEnsemble(engine, members, others.length === 0 ? first.native : headOf(engine, members, weights));
  }

  get maxHistory(): number {
    return this.first.config.maxPositionEmbeddings;
  }

  get numHiddenLayers(): number {
    return this.first.config.numHiddenLayers;
  }

  /** Of the members side by side. */
  get hiddenSize(): number {
    return this.members.length * this.first.config.hiddenSize;
  }

  get numParameters(): number {
    return this.members.reduce((sum, { numParameters }) => sum + numParameters, 0);
  }

  /** The first member. */
  get first(): SequenceModel {
    return this.members[0] as SequenceModel;
  }

  /** Hidden states of the members side by side: for each layer [N or, pooled, S, hiddenSize]. */
  async hiddenStates(
    batch: PackedBatch,
    layers: readonly number[],
    pooling: 'none' | 'last' = 'none',
  ): Promise<Float32Array[]> {
    const parts: Float32Array[][] = [];
    for (const { native } of this.members) {
      parts.push((await native.forward({ ...batch, hiddenStates: layers, pooling })).hiddenStates);
    }
    const rows = pooling === 'none' ? batch.inputIds.length : batch.sequenceOffsets.length - 1;
    if (parts.length === 1) return parts[0] as Float32Array[];
    return layers.map((_, layer) =>
      sideBySide(
        parts.map((states) => states[layer] as Float32Array),
        rows,
      ),
    );
  }

  /** As {@link SequenceModel.rank}, by the weighted mean of the members' logits. */
  async rank(cases: EvaluationCases, options: RankOptions, hooks: Hooks = {}): Promise<Ranking> {
    if (this.members.length === 1) return this.first.rank(cases, options, hooks);
    const recommender = this.engine.createRecommender(this.head);
    try {
      return await rankCases(recommender, this.maxHistory, cases, options, hooks, async (histories) => {
        const [states] = await this.hiddenStates(histories, [this.numHiddenLayers], 'last');
        return states as Float32Array;
      });
    } finally {
      recommender.dispose();
    }
  }

  /** Writes the member, or a directory `member-1`, `member-2`, … for each. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  async save(directory: string): Promise<void> {
    if (this.members.length === 1) return this.first.save(directory);
    await writeDirectoryAtomic(directory, async (temporary) => {
      for (const [i, member] of this.members.entries()) await member.save(join(temporary, `member-${i + 1}`));
    });
  }

  dispose(): void {
    for (const member of this.members) member.dispose();
    if (this.members.length > 1) this.head.dispose();
  }
}

function checkWeights(weights: readonly number[], numMembers: number): void {
  const wrong = weights.findIndex((weight) => !(weight > 0) || !Number.isFinite(weight));
  if (wrong === -1 && weights.length === numMembers) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    wrong === -1
      ? `weights: expected one for each of ${numMembers} members, got ${weights.length}`
      : `weights[${wrong}]: expected a finite number greater than 0, got ${weights[wrong]}`,
  );
}

/** A model of which the item table alone is used. */
function headOf(
  engine: NativeEngine,
  members: readonly SequenceModel[],
  weights: readonly number[],
): NativeTransformer {
  const { vocabSize, hiddenSize, maxPositionEmbeddings: maxHistory } = (members[0] as SequenceModel).config;
  const width = members.length * hiddenSize;
  const shape = { numHiddenLayers: 1, numAttentionHeads: 1, intermediateSize: 1, maxHistory, dropout: 0 };
  const head = engine.createTransformer(sequenceConfig({ ...shape, hiddenSize: width }, vocabSize, 0));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const tables = members.map(({ native }, i) => native.itemTable().map((value) => (value * (weights[i] ?? 0)) / sum));
  head.setParameter('embeddings.word', sideBySide(tables, vocabSize)); // [V, width]
  return head;
}
