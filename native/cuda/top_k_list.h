#pragma once

#include "cuda/item_scorer.h"
#include "cuda/top_k_items.h"

namespace limbeck::cuda {

/// top_k_items() of one query by one kernel. False, with nothing done, where that is not the way.
template <typename T>
bool list_items(Context& context, const ItemQuery<T>& query, const GraphQuery& graph, int32_t* indices, float* scores);

}  // namespace limbeck::cuda
