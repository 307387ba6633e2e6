#include "napi/gpu_requests.h"

#include <string_view>

#include "core/error.h"
#include "retrieve/recommender.h"

namespace limbeck {

GpuRequests::GpuRequests(std::shared_ptr<SharedModel> model)
    : model_(std::move(model)),
      parameters_version_(model_->layout().parameters().version()),
      item_features_version_(model_->layout().item_features_version()) {}

bool GpuRequests::is_current() const {
  const Transformer& layout = model_->layout();
  return layout.parameters().version() == parameters_version_ &&
         layout.item_features_version() == item_features_version_;
}

CudaRecommender& GpuRequests::on_gpu() {
  if (recommender_ == nullptr) recommender_ = std::make_unique<CudaRecommender>(model_->gpu(), model_->on_gpu());
  return *recommender_;
}

bool GpuRequests::is_ready() {
  return !has_failed_ && model_->pending == 0 && is_current() && model_->gpu()->is_idle();
}

int64_t GpuRequests::recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded,
                               int64_t k, int32_t* item_ids, float* scores) {
  has_failed_ = true;  // unless it comes to an end
  const int64_t count = on_gpu().recommend(history, length, exclude, num_excluded, k, item_ids, scores);
  has_failed_ = false;
  return count;
}

bool GpuRequests::rank(const RankInputs& inputs, int32_t* ranks, int32_t* item_ids, float* scores) {
  if (has_failed_ || !is_current()) return false;
  try {
    on_gpu().rank(inputs.batch, inputs.states, inputs.targets, inputs.exclude_ids, inputs.exclude_offsets, inputs.top_k,
                  ranks, item_ids, scores);
  } catch (const Error& error) {
    // A model in training may leave no room for the scores: a validation must not end it.
    if (error.code() == std::string_view("ERR_OUT_OF_MEMORY")) return false;
    has_failed_ = true;
    throw;
  }
  return true;
}

}  // namespace limbeck
