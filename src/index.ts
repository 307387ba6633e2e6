/** The public names. */
export type { RopeScaling, TransformerConfig } from './binding.js';
export type {
  ClassInterest,
  ClassInterestOptions,
  Classification,
  Classifier,
  ClassifierFit,
  ClassifierOptions,
} from './engine/classifier.js';
export type { DistillResult } from './engine/distill.js';
export type { FeedbackCounts, FeedbackSource } from './engine/feedback-data.js';
export type {
  FinetuneComparison,
  FinetuneMetrics,
  FinetuneOptions,
  FinetuneReport,
  FinetuneResult,
} from './engine/finetune.js';
export type { ModelMetadata } from './engine/model-manifest.js';
export type { ModelRegistry, ModelRegistryOptions, ModelVersion } from './engine/model-registry.js';
export type { DistillOptions } from './engine/options.js';
export type { QualityContext, QualityResult } from './engine/quality.js';
export type { QualityOptions } from './engine/quality-options.js';
export { createEngine, Engine, type EngineOptions } from './engine.js';
export { LimbeckError, type LimbeckErrorCode } from './errors.js';
export type { ClassificationMetrics, ClassScores } from './evaluate/classification.js';
export { renderQualityReport } from './evaluate/quality-report.js';
export type { PublishedRow, QualityReport, QualityRow } from './evaluate/quality-types.js';
export { type EvaluationSet, evaluationSet } from './evaluate/recommendation.js';
export { renderReport } from './evaluate/report.js';
export type { DistillationReport, ResultRow } from './evaluate/report-types.js';
export type { EventType, FeedbackEvent, StoredEvent } from './feedback/event.js';
export type { EventStore, RetentionOptions } from './feedback/event-store.js';
export {
  checkpointUserStates,
  type FollowUserStatesOptions,
  followUserStates,
} from './feedback/follow-user-states.js';
export { type EventStoreOptions, openEventStore } from './feedback/open-event-store.js';
export { freshness, Popularity, type PopularityOptions, type PopularityState } from './feedback/popularity.js';
export type { Rewards } from './feedback/rewards.js';
export {
  DEFAULT_STRATEGIES,
  type Strategy,
  type StrategyContext,
  StrategySelector,
  type StrategySelectorOptions,
  type StrategyState,
  type StrategySummary,
} from './feedback/strategy.js';
export { StrategyTrials, type StrategyTrialsOptions } from './feedback/strategy-trials.js';
export { type UserStateOptions, UserStates } from './feedback/user-states.js';
export type { ExtractOptions } from './knowledge/extract.js';
export type { FusedLayers, FusionOptions, ItemPairs, TextEncoderSpec } from './knowledge/fuse.js';
export { Knowledge } from './knowledge/knowledge.js';
export type { KnowledgePart } from './knowledge/manifest.js';
export { mergeKnowledge } from './knowledge/merge.js';
export {
  type ImportRankingsOptions,
  loadRankings,
  type Rankings,
  type RankingsReport,
  saveRankings,
} from './knowledge/rankings.js';
export type { KnowledgeBatch, KnowledgeReader, TopKLogits } from './knowledge/reader.js';
export {
  type Dataset,
  type EvaluationCases,
  type PackedSequences,
  seenItems,
  testCases,
  trainSequences,
  validationCases,
} from './prepare/dataset.js';
export type { Hooks, ProgressEvent } from './prepare/hooks.js';
export type { PrepareOptions } from './prepare/options.js';
export { prepareDataset } from './prepare/prepare.js';
export type { TextFile, Texts } from './prepare/text-lines.js';
export { historySentences, itemSentence } from './prepare/verbalize.js';
export type { Interest, RankedItem, Recommendation, RecommendedItem } from './recommend/answers.js';
export type { BatchRecommendation, BatchRequest } from './recommend/batch.js';
export type { InterestReason, Reason } from './recommend/explain.js';
export type { CatalogueItem } from './recommend/item-index.js';
export type {
  CategoryFilter,
  History,
  HistoryRequest,
  RankingOptions,
  RecommendRequest,
  SearchOptions,
  SelectionOptions,
  UserRequest,
} from './recommend/request.js';
export { Student } from './recommend/student.js';
export type { StudentDetails } from './recommend/student-details.js';
export type { StudentHandle } from './recommend/student-handle.js';
export type { UserHistories } from './recommend/users.js';
export { type Importance, loadImportance, saveImportance, selectByMass } from './student/importance.js';
export { initialiseStudent, uniformLayerMap } from './student/initialise.js';
export type { LanguageStudentContext, LanguageStudentOptions } from './student/language-student.js';
export type { LanguageTeacher } from './student/language-teacher.js';
export type { FineTuneOptions, Schedule, SequenceArchitecture } from './student/options.js';
export { type RankingSignal, type RankingSignalOptions, rankingSignal } from './student/ranking-signal.js';
export type { SequenceEnsemble } from './student/sequence-ensemble.js';
export type { SequenceModel } from './student/sequence-model.js';
export { cacheSequenceTeacher, type SequenceTeacher } from './student/teacher-cache.js';
export type { WeightedTeacher } from './student/teachers.js';
export { interpolateParameters, projectTeacher } from './student/transfer.js';
export type { EpochRecord, FitResult } from './teacher/fit-model.js';
export type { GenerateIdsOptions, GenerateOptions } from './teacher/generate.js';
export type { EmbedOptions, LanguageModel, LoraAdapter } from './teacher/language-model.js';
export type {
  LanguageModelAdaptation,
  LanguageModelTraining,
  LoraOptions,
  PretrainOptions,
} from './teacher/options.js';
export type { TextCorpus } from './teacher/pretrain.js';
export type { StaticEncoderOptions } from './teacher/static-encoder.js';
