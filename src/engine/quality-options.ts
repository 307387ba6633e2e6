/** What `engine.benchQuality()` takes: the options of a distillation, and which students to compare. */
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';
import { fineTuneOptionsSchema, sequenceArchitectureSchema } from '../student/options.js';
import { isUsed } from '../student/transfer.js';
import { checkStudent, type DistillSettings, distillOptionsSchema } from './options.js';

/** Keys of rows are names of files too. */
const rowKey = z.string().regex(/^[a-z0-9][a-z0-9-]{0,39}$/, 'expected small letters, digits and hyphens');
const metric = z.number().min(0).max(1);

const variantSchema = z.strictObject({
  /** As the table prints it. */
  name: z.string().min(1).max(60),
  /** Gives the student the teacher's item vectors: v_i + A·u_i, folded at export. */
  itemFeatures: z.boolean().default(false),
  initialise: z.enum(['random', 'width']).default('random'),
  /** Teaches it the rankings that `rankings` of the options names. */
  rankings: z.boolean().default(false),
  /** Raises the scores of rare items as `student.rareItems` says, once it is trained. */
  rareItems: z.boolean().default(false),
  /** Changes to `student.architecture`. */
  architecture: z.record(z.string(), z.unknown()).default({}),
  /** Changes to `student.training`; `losses` is changed key by key. */
  training: z.record(z.string(), z.unknown()).default({}),
});

/** Every config of a distillation is one of a bench; its `languageStudent` is no recommender, and not trained here. */
const qualityOptionsSchema = distillOptionsSchema.extend({
  title: z.string().min(1).default('Quality'),
  /** What the data must hold once prepared; other counts are refused, because published figures are of these. */
  expected: z.strictObject({ users: z.int(), items: z.int(), interactions: z.int() }).optional(),
  /** Rows of papers and repositories, printed beside ours. */
  published: z
    .array(z.strictObject({ name: z.string(), source: z.string(), recallAt10: metric, ndcgAt10: metric }))
    .default([]),
  /**
   * Weight of an item of the history in the item-kNN baseline: decay^(places from its end). 0.6 was best on validation,
   * of 0.2 to 1, on Amazon Beauty (ndcg@10 .0476; .0404 with 1) and on MovieLens-1M (.1063; .0343 with 1).
   */
  itemNeighbors: z.strictObject({ decay: z.number().gt(0).max(1).default(0.6) }).prefault({}),
  /** Students by key, in the order of the table; `plain` is what the others are compared with. @defaultValue {@link defaultVariants} */
  students: z.record(rowKey, variantSchema).optional(),
  /** Keys of the rows to run. @defaultValue all */
  rows: z.array(z.string()).min(1).optional(),
});

export type QualityOptions = z.input<typeof qualityOptionsSchema>;
type StudentVariant = z.input<typeof variantSchema>;

/** A student of the table, with everything that its training depends on but the seed. */
export interface StudentPlan {
  readonly key: string;
  readonly name: string;
  readonly itemFeatures: boolean;
  readonly initialise: 'random' | 'width';
  readonly rankings: boolean;
  /** Undefined: scores stay as they were trained. */
  readonly rareItems: DistillSettings['student']['rareItems'] | undefined;
  readonly architecture: z.output<typeof sequenceArchitectureSchema>;
  readonly training: z.output<typeof fineTuneOptionsSchema>;
  /** Whether it learns from the sequence teacher. */
  readonly needsTeacher: boolean;
}

export interface QualitySettings extends Omit<z.output<typeof qualityOptionsSchema>, 'students' | 'rows'> {
  readonly students: readonly StudentPlan[];
  /** Keys of the rows to run, in the order of the table. */
  readonly rows: readonly string[];
}

/** Baselines and the teacher; every other row is a student. */
const FIXED_ROWS = ['popularity', 'item-knn', 'teacher'] as const;

const CLICKS_ALONE = { ce: 1, kd: 0, hidden: 0, attention: 0 };

/**
 * The plain student, each signal alone, and all of them as `student` sets them. A signal that `student` does not use gets
 * the weight that is written here.
 */
function defaultVariants({
  student: { training, initialise, itemFeatures, rareItems },
  sequenceTeacher,
  rankings,
}: DistillSettings): Record<string, StudentVariant> {
  const { kd, gate, temperature } = training.losses;
  const softLabels = kd === 0 ? { ce: 0.5, kd: 0.5, gate: 0.2 } : { ce: training.losses.ce, kd, gate, temperature };
  const raises = rareItems.below > 0;
  return {
    plain: { name: 'plain student' },
    vectors: { name: 'frozen teacher vectors + adapter', itemFeatures: true },
    ...(training.sampledNegatives === 0 && {
      'soft-labels': { name: 'soft labels alone', training: { losses: { ...CLICKS_ALONE, ...softLabels } } },
    }),
    'hidden-states': { name: 'hidden states alone', training: { losses: { ...CLICKS_ALONE, hidden: 1 } } },
    initialisation: { name: 'initialisation alone', initialise: 'width' },
    ...(sequenceTeacher.members === 1 && {
      interpolation: {
        name: 'interpolation alone',
        training: { interpolation: training.interpolation ?? { alpha: { from: 0.02, to: 0, until: 0.3 } } },
      },
    }),
    ...(rankings && { rankings: { name: 'imported rankings alone', rankings: true } }),
    ...(raises && {
      'rare-items': { name: 'plain student, rare items raised', rareItems: true },
      'vectors-rare-items': { name: 'vectors, rare items raised', itemFeatures: true, rareItems: true },
    }),
    distilled: {
      name: 'distilled student',
      itemFeatures,
      initialise,
      rankings: rankings !== undefined,
      rareItems: raises,
      training: { losses: training.losses, layerMap: training.layerMap, interpolation: training.interpolation },
    },
  };
}

/**
 * Checks the options and works out every row.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION
 */
export function qualitySettings(options: QualityOptions): QualitySettings {
  const { students: given, rows: wanted, ...settings } = parseOptions(qualityOptionsSchema, options, 'bench');
  const variants = given ?? z.record(z.string(), variantSchema).parse(defaultVariants(settings));
  const students = Object.entries(variants).map(([key, variant]) => {
    if (FIXED_ROWS.some((name) => name === key)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `bench.students: "${key}" is a row of its own; name it otherwise`);
    }
    return planOf(settings, key, variant);
  });
  const plain = students.filter(({ key }) => key === 'plain');
  const others = students.filter(({ key }) => key !== 'plain');
  const all = ['popularity', 'item-knn', ...plain.map(({ key }) => key), 'teacher', ...others.map(({ key }) => key)];
  const unknown = wanted?.find((row) => !all.includes(row));
  if (unknown !== undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `bench.rows: there is no row "${unknown}"; there are ${all.join(', ')}`,
    );
  }
  return { ...settings, students, rows: all.filter((row) => wanted?.includes(row) ?? true) };
}

function planOf(
  { student, rankings: imported, sequenceTeacher }: DistillSettings,
  key: string,
  { name, itemFeatures, initialise, rankings, rareItems, ...changes }: z.output<typeof variantSchema>,
): StudentPlan {
  const { losses: _losses, layerMap: _layerMap, interpolation: _interpolation, ...clicksAlone } = student.training;
  const { losses: changedLosses, ...changedTraining } = changes.training;
  const losses = { ...CLICKS_ALONE, ...(changedLosses as object | undefined) };
  const path = `bench.students.${key}`;
  const training = parseOptions(
    fineTuneOptionsSchema,
    { ...clicksAlone, ...changedTraining, losses },
    `${path}.training`,
  );
  const { intermediateSize, ...shape } = student.architecture;
  const isResized = changes.architecture['hiddenSize'] !== undefined;
  const architecture = parseOptions(
    sequenceArchitectureSchema,
    { ...shape, ...(isResized ? {} : { intermediateSize }), ...changes.architecture },
    `${path}.architecture`,
  );
  const { kd, hidden, attention } = training.losses;
  const needsTeacher =
    initialise === 'width' || training.interpolation !== undefined || [kd, hidden, attention].some(isUsed);
  if (rankings && imported === undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `${path}.rankings: expected "rankings" in the options, got none`);
  }
  if (needsTeacher) checkStudent(sequenceTeacher, { architecture, training }, path);
  return {
    key,
    name,
    itemFeatures,
    initialise,
    rankings,
    rareItems: rareItems ? student.rareItems : undefined,
    architecture,
    training,
    needsTeacher,
  };
}
