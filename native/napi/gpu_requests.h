#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "napi/transformer.h"
#include "retrieve/request_device.h"

namespace limbeck {

/// The GPU of a model's engine as the device of its requests, while the model stays as it was when this was made. Its
/// copy of the items comes with the first request or ranking.
class GpuRequests final : public RequestDevice {
 public:
  explicit GpuRequests(std::shared_ptr<SharedModel> model);

  /// False while the model or the GPU is at work: a request does not wait for a training step. After an error too, so
  /// that the next request is answered without the GPU.
  bool is_ready() override;
  int64_t max_items() const override { return CudaRecommender::kMaxAnswers; }
  int64_t recommend(const int32_t* history, int64_t length, const int32_t* exclude, int64_t num_excluded, int64_t k,
                    int32_t* item_ids, float* scores) override;
  /// By a task that holds the model.
  bool rank(const RankInputs& inputs, int32_t* ranks, int32_t* item_ids, float* scores) override;
  const std::shared_ptr<SharedModel>& model() const { return model_; }

 private:
  /// Whether the model is what it was.
  bool is_current() const;
  CudaRecommender& on_gpu();

  std::shared_ptr<SharedModel> model_;
  uint64_t parameters_version_, item_features_version_;
  std::unique_ptr<CudaRecommender> recommender_;
  bool has_failed_ = false;
};

}  // namespace limbeck
