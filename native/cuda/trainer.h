#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "cuda/api.h"
#include "cuda/graph.h"
#include "cuda/model.h"
#include "cuda/optimizer.h"
#include "cuda/step_terms.h"
#include "cuda/touched_rows.h"

namespace limbeck::cuda {

/// The opaque Trainer of api.h.
struct Trainer {
  virtual ~Trainer() = default;
  virtual Model& model() = 0;
  virtual ApiStepResult compute_gradients(const ApiStep* parts, int64_t num_parts) = 0;
  virtual ApiStepResult step(const ApiStep* parts, int64_t num_parts) = 0;
  virtual void begin_step(const ApiStep* parts, int64_t num_parts) = 0;
  virtual ApiStepResult finish_step() = 0;
  virtual bool projection_shape(int64_t index, int64_t* rows, int64_t* columns) const = 0;
  virtual void ensure_projection(int64_t index, int64_t rows, int64_t columns) = 0;
  virtual void read_array(ApiArray array, int64_t index, float* out) = 0;
  virtual void write_array(ApiArray array, int64_t index, const float* in) = 0;

  int64_t step_count = 0;  // that were finished
};

/// Losses, gradients and the optimiser of one model; the same mathematics as train/trainer.h.
template <typename T>
class TransformerTrainer final : public Trainer {
 public:
  TransformerTrainer(Transformer<T>& model, const ApiOptimizer& options);
  ~TransformerTrainer() override;

  Model& model() override { return model_; }
  ApiStepResult compute_gradients(const ApiStep* parts, int64_t num_parts) override {
    return run(parts, num_parts, false);
  }
  ApiStepResult step(const ApiStep* parts, int64_t num_parts) override { return run(parts, num_parts, true); }
  void begin_step(const ApiStep* parts, int64_t num_parts) override { begin(parts, num_parts, true); }
  ApiStepResult finish_step() override;
  bool projection_shape(int64_t index, int64_t* rows, int64_t* columns) const override;
  void ensure_projection(int64_t index, int64_t rows, int64_t columns) override;
  void read_array(ApiArray array, int64_t index, float* out) override;
  void write_array(ApiArray array, int64_t index, const float* in) override;

 private:
  /// Learned projection of the hidden loss: h_student·weightᵀ is compared with h_teacher.
  struct Projection {
    int64_t rows, columns;  // d_teacher, d_student
    DeviceArena memory;
    float *weight, *gradient, *first, *second;  // [rows, columns]
    T* compute;                                 // the rounded copy; for T = float it is weight
    int64_t count() const { return rows * columns; }
  };
  /// What one step, or a part of it, reads and gives, on the host and on the device, until it is on the stream.
  struct Step;
  /// A step on the stream.
  struct BegunStep {
    int slot;  // of host_sums_ and done_
    bool updates, is_void;
    int64_t num_labels;
    double means[kNumTerms];  // what turns a sum into its term
  };

  ApiStepResult run(const ApiStep* parts, int64_t num_parts, bool updates);
  void begin(const ApiStep* parts, int64_t num_parts, bool updates);
  void run_part(Step& step, bool updates);
  void gather_labels(Step& step);
  void set_terms(Step& step) const;
  std::vector<int64_t> graph_key(const Step& step, bool updates) const;
  void upload(Context& context, Step& step);
  void compute(Context& context, Step& step, bool updates);
  void clear(Context& context, Step& step);
  void forward(Context& context, Step& step);
  bool teach_beside(Step& step);
  void teach(Context& context, Step& step);
  void head_loss(Context& context, Step& step);
  TeacherLogits<T> teacher_logits(Context& context, Step& step);
  void hidden_loss(Context& context, Step& step);
  void attention_loss(Context& context, Step& step);
  void relation_loss(Context& context, Step& step);
  void update(Context& context, Step& step);
  void plan();
  Projection& find_projection(int64_t index);

  // Of one step: the terms, the squares of the gradients, the loss, and whether a step was not finite.
  static constexpr int64_t kNumSums = kNumTerms + 3;

  Transformer<T>& model_;
  const ApiOptimizer options_;
  DeviceArena memory_, plan_memory_;
  float *first_ = nullptr, *second_ = nullptr;                       // [device_count] or null
  double* sums_ = nullptr;                                           // [kNumSums] of the step that runs
  double *squares_ = nullptr, *loss_ = nullptr, *failed_ = nullptr;  // in it
  double* host_sums_ = nullptr;                                      // [kMaxStepsInFlight, kNumSums] pinned
  cudaEvent_t done_[kMaxStepsInFlight] = {};                         // recorded when they have arrived there
  std::deque<BegunStep> begun_;                                      // the oldest first
  int next_slot_ = 0;
  std::vector<std::unique_ptr<Projection>> projections_;
  TouchedRows touched_words_;  // of embeddings.word; exists once softmax was sampled
  UpdatePlan plan_{};
  bool is_planned_ = false;
  Graph graph_;
  std::vector<int64_t> last_key_;  // of the last step that went well
  /// By keys, the capacity of the arena in which such a step had room.
  std::map<std::vector<int64_t>, size_t> measured_;
  int64_t last_generation_ = 0;
};

}  // namespace limbeck::cuda
