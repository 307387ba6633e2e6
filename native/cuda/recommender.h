#pragma once

#include <map>
#include <memory>
#include <vector>

#include "cuda/api.h"
#include "cuda/graph.h"
#include "cuda/model.h"
#include "cuda/quantised_items.h"
#include "cuda/sequence_encoder.h"

namespace limbeck::cuda {

/// The opaque Recommender of api.h.
struct Recommender {
  virtual ~Recommender() = default;
  virtual void recommend(const ApiRecommend& request) = 0;
  virtual void rank(const ApiRank& request) = 0;
};

/// Requests of one user: the forward pass over the history and the search of the catalogue, as one graph. And full
/// ranking of many cases. Its items are the rows of the model's table when it was made.
template <typename T>
class TransformerRecommender final : public Recommender {
 public:
  explicit TransformerRecommender(Transformer<T>& model);

  void recommend(const ApiRecommend& request) override;
  void rank(const ApiRank& request) override;

 private:
  /// For histories of up to `length` items and up to k answers.
  struct Plan {
    int64_t length, k;
    DeviceArena memory;
    Graph graph;
    int32_t* host_inputs = nullptr;   // pinned: ids, positions [length], offsets [2], last row, excluded: count, items
    int32_t* host_indices = nullptr;  // pinned [k]
    float* host_scores = nullptr;     // pinned [k]
    ~Plan();
  };
  /// Where the catalogue is large: in a small one, reading half of it costs more than it saves.
  void quantise_items();
  Plan& plan_for(int64_t length, int64_t k);
  void make(Plan& plan);
  /// The state after each history: queries [S, d] =
  void encode_histories(Context& context, const ApiBatch& batch, T* queries);
  /// Describes the model to encode_sequence(); false where that does not take it.
  bool describe_encoder();

  Transformer<T>& model_;
  DeviceArena memory_;
  T* items_ = nullptr;  // [padded V, d]
  DeviceArena quantised_memory_;
  QuantisedItems quantised_;
  SequenceEncoder encoder_{};
  char* packed_encoder_ = nullptr;  // null where the general passes must do
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<Plan>> plans_;
};

}  // namespace limbeck::cuda
