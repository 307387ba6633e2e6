#include "napi/gpu_requests.h"

namespace limbeck {

GpuRequests::GpuRequests(std::shared_ptr<SharedModel> model)
    : model_(std::move(model)),
      parameters_version_(model_->layout().parameters().version()),
      item_features_version_(model_->layout().item_features_version()) {}

bool GpuRequests::is_ready() {
  const Transformer& layout = model_->layout();
  return !has_failed_ && model_->pending == 0 && layout.parameters().version() == parameters_version_ &&
         layout.item_features_version() == item_features_version_ && model_->gpu()->is_idle();
}

int64_t GpuRequests::recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded,
                               int64_t k, int32_t* item_ids, float* scores) {
  has_failed_ = true;  // unless it comes to an end
  if (recommender_ == nullptr) recommender_ = std::make_unique<CudaRecommender>(model_->gpu(), model_->on_gpu());
  const int64_t count = recommender_->recommend(history, length, exclude, num_excluded, k, item_ids, scores);
  has_failed_ = false;
  return count;
}

}  // namespace limbeck
