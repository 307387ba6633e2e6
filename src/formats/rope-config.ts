/** Rotary positions of a `config.json`: `rope_theta` and `rope_scaling`, or the newer `rope_parameters` with both. */
import type { RopeScaling, TransformerConfig } from '../binding.js';
import type { ConfigReader } from './config-reader.js';

const DEFAULT_THETA = 10_000;
const MAX_POSITIONS = 1 << 24;
const ORIGINAL_POSITIONS = 'original_max_position_embeddings';
const NO_KEYS: ReadonlySet<string> = new Set();
const ROPE_TYPES = {
  default: 'default',
  linear: 'linear',
  dynamic: 'dynamic',
  llama3: 'llama3',
  yarn: 'yarn',
} as const;

/** @throws LimbeckError ERR_UNSUPPORTED_MODEL naming the key */
export function readRope(
  reader: ConfigReader,
  maxPositionEmbeddings: number,
): { ropeTheta: number; ropeScaling?: RopeScaling } {
  reader.only('partial_rotary_factor', [1, null]);
  reader.only('rope_interleaved', [false, null]);
  const theta = reader.positive('rope_theta', DEFAULT_THETA);
  const [older, newer] = ['rope_scaling', 'rope_parameters'].map((key) => {
    const inner = reader.object(key);
    if (inner === undefined) return undefined;
    inner.only('partial_rotary_factor', [1, null]);
    const ropeTheta = inner.positive('rope_theta', theta);
    if (reader.positive('rope_theta', ropeTheta) !== ropeTheta)
      inner.refuse('rope_theta', ropeTheta, `${theta}, as outside`);
    const ropeScaling = readScaling(inner, maxPositionEmbeddings);
    inner.refuseUnknown(NO_KEYS);
    return { ropeTheta, ...(ropeScaling === undefined ? {} : { ropeScaling }) };
  });
  // Transformers 4 reads the older key alone, and 5 prefers it.
  if (older && newer && JSON.stringify(older) !== JSON.stringify(newer)) {
    reader.refuse('rope_parameters', newer, 'what rope_scaling says, or absent');
  }
  return newer ?? older ?? { ropeTheta: theta };
}

function readScaling(reader: ConfigReader, maxPositionEmbeddings: number): RopeScaling | undefined {
  // Older files say `type`; some say both.
  const older = reader.choice('type', ROPE_TYPES, 'default');
  const ropeType = reader.choice('rope_type', ROPE_TYPES, older);
  if (older !== 'default' && older !== ropeType) reader.refuse('type', older, `'${ropeType}', as rope_type says`);
  if (ropeType === 'default') return undefined;
  const factor = reader.positive('factor');
  if (factor < 1) reader.refuse('factor', factor, 'at least 1');
  switch (ropeType) {
    case 'linear':
      return { ropeType, factor };
    case 'dynamic':
      reader.only(ORIGINAL_POSITIONS, [maxPositionEmbeddings, null]);
      return { ropeType, factor };
    case 'llama3':
      return { ropeType, factor, ...readLlama3(reader) };
    case 'yarn':
      return { ropeType, factor, ...readYarn(reader, factor, maxPositionEmbeddings) };
  }
}

function readLlama3(reader: ConfigReader) {
  const lowFreqFactor = reader.positive('low_freq_factor');
  const highFreqFactor = reader.positive('high_freq_factor');
  if (highFreqFactor <= lowFreqFactor) {
    reader.refuse('high_freq_factor', highFreqFactor, `above low_freq_factor, ${lowFreqFactor}`);
  }
  const originalMaxPositionEmbeddings = reader.integer(ORIGINAL_POSITIONS, 1, MAX_POSITIONS);
  return { originalMaxPositionEmbeddings, lowFreqFactor, highFreqFactor };
}

function readYarn(reader: ConfigReader, factor: number, maxPositionEmbeddings: number) {
  reader.only('truncate', [true, null]);
  const betaFast = reader.positive('beta_fast', 32);
  const betaSlow = reader.positive('beta_slow', 1);
  if (betaFast <= betaSlow) reader.refuse('beta_fast', betaFast, `above beta_slow, ${betaSlow}`);
  return {
    originalMaxPositionEmbeddings: reader.integer(ORIGINAL_POSITIONS, 1, MAX_POSITIONS, maxPositionEmbeddings),
    betaFast,
    betaSlow,
    // Peng et al. 2023, arXiv:2309.00071, §3.4.
    attentionFactor: reader.positive('attention_factor', 0.1 * Math.log(factor) + 1),
  };
}

/** The keys that {@link readRope} reads; those without a value are left out of the file. */
export function ropeKeys(config: TransformerConfig): Record<string, unknown> {
  const { ropeTheta, ropeScaling } = config;
  if (ropeScaling === undefined) return { rope_theta: ropeTheta };
  // Of yarn's, transformers 4.5x takes max_position_embeddings over this number for the factor, where it is there.
  const { originalMaxPositionEmbeddings: original } = ropeScaling;
  const isDefault = ropeScaling.ropeType === 'yarn' && original === config.maxPositionEmbeddings;
  return {
    rope_theta: ropeTheta,
    rope_scaling: {
      rope_type: ropeScaling.ropeType,
      factor: ropeScaling.factor,
      [ORIGINAL_POSITIONS]: isDefault ? undefined : original,
      low_freq_factor: ropeScaling.lowFreqFactor,
      high_freq_factor: ropeScaling.highFreqFactor,
      beta_fast: ropeScaling.betaFast,
      beta_slow: ropeScaling.betaSlow,
      attention_factor: ropeScaling.attentionFactor,
    },
  };
}
