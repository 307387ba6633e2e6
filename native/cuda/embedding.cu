#include <algorithm>

#include "cuda/embedding.h"
#include "cuda/packs.h"
#include "cuda/rows.h"

namespace limbeck::cuda {
namespace {

template <typename T>
struct EmbeddingForward {
  const int32_t *input_ids, *position_ids, *token_type_ids;
  const T *words, *positions, *types;  // the last two may be null
  T* y;
  int64_t hidden_size;

  template <int kCount>
  struct Loaded {
    float word[kCount], position[kCount], type[kCount];
  };
  template <int kCount>
  __device__ void load_row(const T* table, const int32_t* ids, int64_t row, int64_t column,
                           float (&out)[kCount]) const {
    if (table != nullptr) {
      cuda::load(table + static_cast<int64_t>(ids[row]) * hidden_size + column, out);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i] = 0;
    }
  }
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    load_row(words, input_ids, row, column, loaded.word);
    load_row(positions, position_ids, row, column, loaded.position);
    load_row(types, token_type_ids, row, column, loaded.type);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t row, int64_t column, Loaded<kCount>& loaded) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) loaded.word[i] += loaded.position[i] + loaded.type[i];
    cuda::store(y + row * hidden_size + column, loaded.word);
  }
};

/// Where the parts of an EmbeddingOrder lie.
struct OrderParts {
  int32_t num_pieces, num_split_ids;
  const int32_t *rows, *piece_begin, *piece_target, *split_begin, *split_ids;

  __device__ __forceinline__ explicit OrderParts(const int32_t* words)
      : num_pieces(words[1]),
        num_split_ids(words[2]),
        rows(words + 3),
        piece_begin(rows + words[0]),
        piece_target(piece_begin + num_pieces + 1),
        split_begin(piece_target + num_pieces),
        split_ids(split_begin + num_split_ids + 1) {}
};

constexpr int kThreads = 128;
constexpr int kUnroll = 8;  // rows in flight: they lie far apart

/// out += x[rows[begin]] + x[rows[begin + 1]] + … of one pack of columns, in order; without a list, of rows themselves.
template <int kCount, typename T>
__device__ __forceinline__ void add_rows_of(const T* x, const int32_t* rows, int begin, int end, int64_t width,
                                            int64_t column, float (&out)[kCount]) {
  for (int first = begin; first < end; first += kUnroll) {
    float values[kUnroll][kCount];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u >= end) continue;
      const int64_t row = rows == nullptr ? first + u : rows[first + u];
      load(x + row * width + column, values[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u >= end) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i] += values[u][i];
    }
  }
}

/// A piece for every 2^log_lanes threads: into the table where it is the only one of its id, else into partial sums.
template <int kCount, typename T>
__global__ void __launch_bounds__(kThreads)
    sum_pieces(const int32_t* words, const T* d_y, float* d_table, float* partials, int64_t width, int log_lanes) {
  const OrderParts order(words);
  const int piece =
      static_cast<int>(blockIdx.x) * (kThreads >> log_lanes) + (static_cast<int>(threadIdx.x) >> log_lanes);
  if (piece >= order.num_pieces) return;
  const int begin = order.piece_begin[piece], end = order.piece_begin[piece + 1];
  const int target = order.piece_target[piece];
  const int lanes = 1 << log_lanes, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  for (int64_t column = lane * kCount; column < width; column += lanes * kCount) {
    float sums[kCount] = {};
    float* out =
        target >= 0 ? d_table + target * width + column : partials + static_cast<int64_t>(-1 - target) * width + column;
    if (target >= 0) load(out, sums);
    add_rows_of(d_y, order.rows, begin, end, width, column, sums);
    store(out, sums);
  }
}

/// The partial sums of the ids of several pieces, in order.
template <int kCount>
__global__ void __launch_bounds__(kThreads)
    sum_split_ids(const int32_t* words, const float* partials, float* d_table, int64_t width, int log_lanes) {
  const OrderParts order(words);
  const int index =
      static_cast<int>(blockIdx.x) * (kThreads >> log_lanes) + (static_cast<int>(threadIdx.x) >> log_lanes);
  if (index >= order.num_split_ids) return;
  const int begin = order.split_begin[index], end = order.split_begin[index + 1];
  const int64_t id = order.split_ids[index];
  const int lanes = 1 << log_lanes, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  for (int64_t column = lane * kCount; column < width; column += lanes * kCount) {
    float sums[kCount];
    load(d_table + id * width + column, sums);
    add_rows_of(partials, nullptr, begin, end, width, column, sums);
    store(d_table + id * width + column, sums);
  }
}

template <int kCount, typename T>
void launch_backward(Context& context, const DeviceEmbeddingOrder& order, const T* d_y, float* d_table, int64_t width) {
  const int64_t num_packs = width / kCount;
  int log_lanes = 0;
  while ((2 << log_lanes) <= kThreads && (int64_t{1} << log_lanes) < num_packs) ++log_lanes;
  const int64_t items_a_block = kThreads >> log_lanes;
  const auto grid = [&](int64_t items) { return dim3(static_cast<unsigned>(divide_up(items, items_a_block))); };
  const DeviceArena::Scope scope(context.arena);
  float* partials = context.arena.allocate<float>(order.max_partial_sums * width);
  if (order.max_pieces == 0) return;
  launch(context, sum_pieces<kCount, T>, grid(order.max_pieces), dim3(kThreads), 0, order.words, d_y, d_table, partials,
         width, log_lanes);
  if (order.max_split_ids == 0) return;
  launch(context, sum_split_ids<kCount>, grid(order.max_split_ids), dim3(kThreads), 0, order.words, partials, d_table,
         width, log_lanes);
}

/// Pairs of a head: row by row, column = head·half + index of the pair.
template <typename T>
struct Rotary {
  T* x;
  const int32_t* position_ids;
  const float *cosines, *sines;
  int64_t row_stride;
  int half;
  float direction;

  template <int kCount>
  struct Loaded {
    float low[kCount], high[kCount], cosines[kCount], sines[kCount];
    T* x;
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t row, int64_t column) const {
    Loaded<kCount> loaded;
    const int head = static_cast<int>(column) / half, j = static_cast<int>(column) - head * half;
    const int64_t angle = static_cast<int64_t>(position_ids[row]) * half + j;
    loaded.x = x + row * row_stride + static_cast<int64_t>(2) * head * half + j;
    cuda::load(loaded.x, loaded.low);
    cuda::load(loaded.x + half, loaded.high);
    cuda::load(cosines + angle, loaded.cosines);
    cuda::load(sines + angle, loaded.sines);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t, int64_t, Loaded<kCount>& loaded) const {
    float low[kCount], high[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float sine = direction * loaded.sines[i];
      low[i] = loaded.low[i] * loaded.cosines[i] - loaded.high[i] * sine;
      high[i] = loaded.high[i] * loaded.cosines[i] + loaded.low[i] * sine;
    }
    cuda::store(loaded.x, low);
    cuda::store(loaded.x + half, high);
  }
};

}  // namespace

template <typename T>
void embedding_forward(Context& context, const int32_t* input_ids, const T* words, const int32_t* position_ids,
                       const T* positions, const int32_t* token_type_ids, const T* types, T* y, int64_t num_rows,
                       int64_t hidden_size) {
  const EmbeddingForward<T> body{input_ids, position_ids, token_type_ids, words, positions, types, y, hidden_size};
  for_each_of_rows<kPack<T>>(context, body, num_rows, hidden_size,
                             is_aligned(words) && is_aligned(positions) && is_aligned(types) && is_aligned(y));
}

template <typename T>
void embedding_backward(Context& context, const DeviceEmbeddingOrder& order, const T* d_y, float* d_table,
                        int64_t hidden_size) {
  if (hidden_size % kPack<T> == 0 && is_aligned(d_y) && is_aligned(d_table)) {
    launch_backward<kPack<T>>(context, order, d_y, d_table, hidden_size);
  } else {
    launch_backward<1>(context, order, d_y, d_table, hidden_size);
  }
}

template <typename T>
void rotary(Context& context, T* x, const int32_t* position_ids, int64_t num_rows, int64_t row_stride,
            int64_t num_heads, int64_t head_dim, const float* cosines, const float* sines, int direction) {
  const int64_t half = head_dim / 2;
  const Rotary<T> body{
      x, position_ids, cosines, sines, row_stride, static_cast<int>(half), static_cast<float>(direction)};
  const bool is_packed =
      is_aligned(x) && is_aligned(cosines) && is_aligned(sines) && row_stride % kPack<T> == 0 && half % kPack<T> == 0;
  for_each_of_rows<kPack<T>>(context, body, num_rows, num_heads * half, is_packed);
}

#define LIMBECK_INSTANTIATE(T)                                                                                       \
  template void embedding_forward(Context&, const int32_t*, const T*, const int32_t*, const T*, const int32_t*,      \
                                  const T*, T*, int64_t, int64_t);                                                   \
  template void embedding_backward(Context&, const DeviceEmbeddingOrder&, const T*, float*, int64_t);                \
  template void rotary(Context&, T*, const int32_t*, int64_t, int64_t, int64_t, int64_t, const float*, const float*, \
                       int);
LIMBECK_INSTANTIATE(float)
LIMBECK_INSTANTIATE(bf16)
#undef LIMBECK_INSTANTIATE

}  // namespace limbeck::cuda
