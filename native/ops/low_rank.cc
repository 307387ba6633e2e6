#include "ops/low_rank.h"

#include <cstring>

#include "ops/activation.h"
#include "ops/gemm.h"

namespace limbeck {
namespace {

/// What A is multiplied with: x, or a copy of it after dropout.
const float* dropped(Context& context, const LowRankShape& shape, const float* x) {
  if (shape.dropout <= 0) return x;
  const int64_t count = shape.num_rows * shape.in_features;
  float* copy = context.scratch.allocate<float>(count);  // [N, in_features]
  std::memcpy(copy, x, static_cast<size_t>(count) * sizeof(float));
  dropout(context, copy, count, shape.dropout, shape.seed, shape.stream, shape.first);
  return copy;
}

void multiply(float* x, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

/// scale·x·Aᵀ
float* reduced(Context& context, const LowRankShape& shape, const float* x, const float* a) {
  float* low = context.scratch.allocate<float>(shape.num_rows * shape.rank);  // [N, rank]
  gemm(context, shape.num_rows, shape.rank, shape.in_features, {x, shape.in_features, 1}, {a, 1, shape.in_features},
       nullptr, low, shape.rank, false);
  multiply(low, shape.num_rows * shape.rank, shape.scale);
  return low;
}

}  // namespace

void low_rank_forward(Context& context, const LowRankShape& shape, const float* x, const float* a, const float* b,
                      float* y) {
  const Arena::Scope scope(context.scratch);
  const float* low = reduced(context, shape, dropped(context, shape, x), a);  // [N, rank]
  gemm(context, shape.num_rows, shape.out_features, shape.rank, {low, shape.rank, 1}, {b, 1, shape.rank}, nullptr, y,
       shape.ldy, true);
}

void low_rank_backward(Context& context, const LowRankShape& shape, const float* x, const float* a, const float* b,
                       const float* d_y, float* d_x, float* d_a, float* d_b) {
  const Arena::Scope scope(context.scratch);
  const int64_t N = shape.num_rows, in = shape.in_features, out = shape.out_features, rank = shape.rank;
  const float* read = dropped(context, shape, x);       // [N, in]
  const float* low = reduced(context, shape, read, a);  // [N, rank], computed again: cheaper than keeping it
  gemm(context, out, rank, N, {d_y, 1, shape.ldy}, {low, rank, 1}, nullptr, d_b, rank, true);
  float* d_low = context.scratch.allocate<float>(N * rank);  // [N, rank]
  gemm(context, N, rank, out, {d_y, shape.ldy, 1}, {b, rank, 1}, nullptr, d_low, rank, false);
  multiply(d_low, N * rank, shape.scale);
  gemm(context, rank, in, N, {d_low, 1, rank}, {read, in, 1}, nullptr, d_a, in, true);
  if (shape.dropout <= 0) {
    gemm(context, N, in, rank, {d_low, rank, 1}, {a, in, 1}, nullptr, d_x, in, true);
    return;
  }
  float* d_read = context.scratch.allocate<float>(N * in);  // [N, in]
  gemm(context, N, in, rank, {d_low, rank, 1}, {a, in, 1}, nullptr, d_read, in, false);
  dropout(context, d_read, N * in, shape.dropout, shape.seed, shape.stream, shape.first);
  add_in_place(context, d_read, d_x, N * in);
}

}  // namespace limbeck
