#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/api.h"
#include "model/inference.h"
#include "model/transformer.h"
#include "ops/context.h"
#include "train/trainer.h"

namespace limbeck {

struct CudaDevice {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int num_multiprocessors = 0;
  uint64_t total_bytes = 0, free_bytes = 0;
  std::string problem;  // why it cannot be used; empty = it can
};

/// What a machine has of what the CUDA library needs.
struct CudaInfo {
  int runtime_version = 0;  // 1000·major + 10·minor
  int driver_version = 0;   // 0 = no driver
  std::string cublas;       // the library in use; empty = none
  std::string problem;      // why nothing can be computed; empty = something can
  std::vector<CudaDevice> devices;
};

/// Opens the library at `path` and asks it what is there. Throws Error("ERR_CUDA_UNAVAILABLE") when it cannot be opened
/// or is of another version; what is wrong with driver and devices is in the result.
CudaInfo cuda_info(const std::string& path);

/// One GPU, with all that lives on it. Its calls, and those of its models and trainers, may come from any thread: one
/// runs at a time, the others wait. Errors have the library's codes: "ERR_CUDA_UNAVAILABLE", "ERR_OUT_OF_MEMORY",
/// "ERR_CUDA", "ERR_DEVICE_LOST" (then every later call fails alike), "ERR_NOT_FINITE".
class CudaEngine {
 public:
  /// Opens the library at `path`, an absolute one, once a process.
  /// `tunes_products`: see set_tuning of cuda/api.h.
  static std::shared_ptr<CudaEngine> create(const std::string& path, int device, Precision precision,
                                            bool tunes_products);
  ~CudaEngine();
  CudaEngine(const CudaEngine&) = delete;
  CudaEngine& operator=(const CudaEngine&) = delete;

  const CudaDevice& device() const { return device_; }
  Precision precision() const { return precision_; }

  /// Whether a call would begin at once: none is at work, and no pass or step is.
  bool is_idle();

  /// limbeck::pca() and pca_transform() of ops/pca.h on the GPU, in fp32.
  void pca(const float* x, int64_t num_rows, int64_t num_columns, int64_t num_components, uint64_t seed, float* mean,
           float* components, float* explained_variance);
  void pca_transform(const float* x, const float* mean, const float* components, float* y, int64_t num_rows,
                     int64_t num_columns, int64_t num_components);

  /// Frees all that is on the GPU, after the call at work; what was made here is unusable afterwards. Idempotent.
  void close();

 private:
  friend class CudaModel;
  friend class CudaPass;
  friend class CudaTrainer;
  friend class CudaRecommender;
  /// What the library made and did not destroy yet.
  template <typename T>
  struct Handles {
    std::set<T*> alive;        // guarded by mutex_
    std::vector<T*> released;  // guarded by released_mutex_
    void free_released(void (*destroy)(T*));
    void free_all(void (*destroy)(T*));
  };
  CudaEngine(const cuda::Api& api, int device, Precision precision, bool tunes_products);

  /// Runs call(error) alone. Its result says success: not null, or 0.
  template <typename Call>
  auto run(Call&& call);
  /// The same for a call that makes something.
  template <typename T, typename Call>
  T* make(Handles<T>& handles, Call&& call);
  /// Never waits for a call at work: what cannot be freed now is freed before the next one.
  template <typename T>
  void release(Handles<T>& handles, T* handle);
  void free_released();

  const cuda::Api& api_;
  CudaDevice device_;
  Precision precision_;

  std::mutex mutex_;  // held while the library works
  cuda::Engine* engine_ = nullptr;
  int64_t num_steps_ = 0;  // steps that were begun and not finished; guarded by mutex_
  std::mutex released_mutex_;
  Handles<cuda::Pass> passes_;
  Handles<cuda::Model> models_;
  Handles<cuda::Trainer> trainers_;
  Handles<cuda::Recommender> recommenders_;
};

/// A forward pass at work. Passes are finished in the order in which they were begun.
class CudaPass {
 public:
  /// Gives up what was not finished.
  ~CudaPass();
  CudaPass(const CudaPass&) = delete;
  CudaPass& operator=(const CudaPass&) = delete;

  /// Waits for its results. Once.
  ForwardOutputs finish();

 private:
  friend class CudaModel;
  CudaPass(std::shared_ptr<CudaEngine> engine, ForwardOutputs outputs)
      : engine_(std::move(engine)), outputs_(std::move(outputs)) {}
  void destroy();

  std::shared_ptr<CudaEngine> engine_;
  ForwardOutputs outputs_;  // written until the pass is finished or destroyed
  cuda::Pass* pass_ = nullptr;
};

/// Parameters of one transformer on the GPU.
class CudaModel {
 public:
  /// With undefined values.
  CudaModel(std::shared_ptr<CudaEngine> engine, const TransformerConfig& config);
  ~CudaModel();
  CudaModel(const CudaModel&) = delete;
  CudaModel& operator=(const CudaModel&) = delete;

  // All in the layout of Parameters.   flat [flat_count]
  void set_parameters(const float* flat);
  void get_parameters(float* flat);
  /// Of the last step or compute_gradients of a trainer.
  void get_gradients(float* flat);
  /// features [V, f]
  void set_item_features(const float* features);
  /// run_forward() on the GPU, checks included: returns when the pass is on its way, so that the next one may be begun.
  /// Inputs are the caller's again. `layout` has this model's configuration; its values are not read.
  std::unique_ptr<CudaPass> begin_forward(const Transformer& layout, const ForwardInputs& inputs);
  /// θ ← θ + alpha·(source − θ), both of one configuration.
  void interpolate(const CudaModel& source, float alpha);

 private:
  friend class CudaTrainer;
  friend class CudaRecommender;
  std::shared_ptr<CudaEngine> engine_;
  const TransformerConfig config_;
  cuda::Model* model_;
};

/// The items of a sequence model on the GPU, as they were when it was made; the rest of the model is shared with it.
class CudaRecommender {
 public:
  CudaRecommender(std::shared_ptr<CudaEngine> engine, CudaModel& model);
  ~CudaRecommender();
  CudaRecommender(const CudaRecommender&) = delete;
  CudaRecommender& operator=(const CudaRecommender&) = delete;

  /// The best k items but those of `exclude`, best first, equal scores by lower id; returns how many. Ids were checked;
  /// k and num_excluded are at most kMaxAnswers.   item_ids, scores [k] =
  int64_t recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded, int64_t k,
                    int32_t* item_ids, float* scores);
  static constexpr int64_t kMaxAnswers = 1024;
  /// Recommender::rank() of retrieve/recommender.h, of what it has checked: in an excluded list each item stands once,
  /// and the target in none.   states [S, d] or null; targets [S]; exclude_offsets [S + 1]; k ≤ the number of items
  ///   ranks [S], item_ids, scores [S, k] =
  void rank(const Batch& histories, const float* states, const int32_t* targets, const int32_t* exclude,
            const int32_t* exclude_offsets, int64_t k, int32_t* ranks, int32_t* item_ids, float* scores);

 private:
  std::shared_ptr<CudaEngine> engine_;
  cuda::Recommender* recommender_;
};

/// Models on the GPU that a step reads beside the student; null = none.
struct CudaTeacher {
  const CudaModel* model = nullptr;
  const CudaModel* head = nullptr;
};

struct ProjectionShape {
  int64_t index, rows, columns;
  int64_t count() const { return rows * columns; }
};

/// Trainer on the GPU.
class CudaTrainer {
 public:
  CudaTrainer(std::shared_ptr<CudaEngine> engine, CudaModel& model, const OptimizerOptions& options);
  ~CudaTrainer();
  CudaTrainer(const CudaTrainer&) = delete;
  CudaTrainer& operator=(const CudaTrainer&) = delete;

  /// As Trainer::compute_gradients() and step(), without the checks: see check_step(). Of inputs.teachers, of
  /// which there is at most one, model and head only say that they are there. A step is in two, as cuda/api.h has it:
  /// up to cuda::kMaxStepsInFlight may be on their way.
  StepResult compute_gradients(const StepInputs& inputs, const CudaTeacher& teacher);
  void begin_step(const StepInputs& inputs, const CudaTeacher& teacher);
  StepResult finish_step();

  int64_t step_count() const;
  void set_step_count(int64_t step_count);
  /// Those that exist, by index.
  std::vector<ProjectionShape> projections() const;
  /// Makes the projection. Throws Error("ERR_SHAPE_MISMATCH") when it exists in another shape.
  void ensure_projection(int64_t index, int64_t rows, int64_t columns);
  /// `index` of the projection; not read for the moments of the model.
  void read(cuda::ApiArray array, int64_t index, float* out);
  void write(cuda::ApiArray array, int64_t index, const float* in);

 private:
  /// call(parts, num_parts, error)
  template <typename Call>
  void run_step(const StepInputs& inputs, const CudaTeacher& teacher, Call&& call);

  std::shared_ptr<CudaEngine> engine_;
  const TransformerConfig config_;  // of the model
  cuda::Trainer* trainer_;
};

constexpr int64_t kMaxProjections = 1024;  // one a layer-map entry

}  // namespace limbeck
