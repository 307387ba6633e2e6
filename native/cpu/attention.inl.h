// Attention kernels of one (sequence, key-value head). Included by kernels_<isa>.cc, after vec.inl.h.
//
// Every product here is a small matrix product whose right operand is packed with rows of whole vectors: keys and
// values transposed for products over head_dim, as they are for products over the keys. Scores live in a block of
// query rows × all keys; above the diagonal, and before a sliding window, they are neither computed, beyond the tile
// that holds the bound, nor read.

constexpr int64_t kTileRows = 6;  // × 2 vectors: 12 accumulators, enough to hide the latency of two FMA pipes

/// What part of the product a tile of rows r … r + 5 needs.
enum class Triangle {
  kFull,
  kColumns,    // columns < diagonal + r + 6: scores of causal rows
  kInnerTo,    // k < diagonal + r + 6: sums over the keys that causal rows see
  kInnerFrom,  // k >= r − diagonal: sums over the rows that see a causal key
};

struct SmallProduct {
  const float* a;  // element (i, k) at a[i·a_row_stride + k·a_column_stride]
  int64_t a_row_stride, a_column_stride;
  const float* b;  // [inner, ldb] whole vectors
  int64_t ldb;
  float* c;  // [rows, ldc] whole vectors
  int64_t ldc;
  int64_t rows, columns, inner;  // columns: a multiple of kLanes
  Triangle triangle;
  int64_t diagonal;  // index of the first query row of the block
  bool accumulate;
  int64_t window;  // keys that a causal row sees, itself the last; 0 = all before it
};

/// First key of causal query row i.
inline int64_t first_key_of(int64_t i, int64_t window) { return window > 0 && i >= window ? i + 1 - window : 0; }

template <int kRows, int kVectors>
inline void multiply_tile(const SmallProduct& p, int64_t row, int64_t column, int64_t first, int64_t last) {
  // Unrolled here, not by the optimiser's last passes: only then do the accumulators never touch the stack.
  const int64_t a_row_stride = p.a_row_stride, a_column_stride = p.a_column_stride, ldb = p.ldb, ldc = p.ldc;
  VecF sums[kRows][kVectors];
  float* c = p.c + row * ldc + column;
  if (p.accumulate) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = load(c + i * ldc + v * kLanes);
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = broadcast(0.0f);
    }
  }
  const float* a = p.a + row * a_row_stride + first * a_column_stride;
  const float* b = p.b + first * ldb + column;
  for (int64_t k = first; k < last; ++k, a += a_column_stride, b += ldb) {
    VecF right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const VecF left = broadcast(a[i * a_row_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + i * ldc + v * kLanes, sums[i][v]);
  }
}

template <int kVectors>
inline void multiply_rows(const SmallProduct& p, int64_t row, int64_t column, int64_t first, int64_t last) {
  switch (p.rows - row) {
    case 1:
      return multiply_tile<1, kVectors>(p, row, column, first, last);
    case 2:
      return multiply_tile<2, kVectors>(p, row, column, first, last);
    case 3:
      return multiply_tile<3, kVectors>(p, row, column, first, last);
    case 4:
      return multiply_tile<4, kVectors>(p, row, column, first, last);
    case 5:
      return multiply_tile<5, kVectors>(p, row, column, first, last);
    default:
      return multiply_tile<kTileRows, kVectors>(p, row, column, first, last);
  }
}

template <int kVectors>
inline void multiply_columns(const SmallProduct& p, int64_t column) {
  for (int64_t row = 0; row < p.rows; row += kTileRows) {
    int64_t first = 0, last = p.inner;
    const int64_t first_key = first_key_of(p.diagonal + row, p.window);
    if (p.triangle == Triangle::kColumns &&
        (column >= p.diagonal + row + kTileRows || column + kVectors * kLanes <= first_key)) {
      continue;
    }
    if (p.triangle == Triangle::kInnerTo) {
      if (p.diagonal + row + kTileRows < last) last = p.diagonal + row + kTileRows;
      first = first_key;
    }
    if (p.triangle == Triangle::kInnerFrom) {
      if (row > p.diagonal) first = row - p.diagonal;
      // The last key of the tile is seen by the rows up to window − 1 after it.
      const int64_t end = row + kTileRows - 1 + p.window - p.diagonal;
      if (p.window > 0 && end < last) last = end < 0 ? 0 : end;
    }
    if (first > last) first = last;
    // Of two vectors of columns, short causal rows often need the first alone.
    if (p.triangle == Triangle::kColumns && column + kLanes >= p.diagonal + row + kTileRows) {
      multiply_rows<1>(p, row, column, first, last);
    } else {
      multiply_rows<kVectors>(p, row, column, first, last);
    }
  }
}

inline void multiply(const SmallProduct& p) {
  int64_t column = 0;
  for (; column + 2 * kLanes <= p.columns; column += 2 * kLanes) multiply_columns<2>(p, column);
  if (column < p.columns) multiply_columns<1>(p, column);
}

inline int64_t round_up_to_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

/// out [num_rows, out_stride] = rows of x, zeros up to whole vectors.
inline void pack_rows(const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t num_rows,
                      int64_t num_columns) {
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < num_columns; ++c) out[r * out_stride + c] = x[r * x_stride + c];
    for (int64_t c = num_columns; c < out_stride; ++c) out[r * out_stride + c] = 0;
  }
}

/// out [num_columns, out_stride] = xᵀ, zeros up to out_stride, whole vectors.
inline void pack_transposed(const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t num_rows,
                            int64_t num_columns) {
  for (int64_t r = 0; r < out_stride; r += kLanes) {
    for (int64_t c = 0; c < num_columns; c += kLanes) {
      const int64_t width = num_columns - c < kLanes ? num_columns - c : kLanes;
      VecF rows[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* row = x + (r + i) * x_stride + c;
        rows[i] = r + i >= num_rows ? VecF{} : width == kLanes ? load(row) : load_first(row, width);
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        if (i < width) store(out + (c + i) * out_stride + r, rows[i]);
      }
    }
  }
}

inline void unpack_rows(const float* x, int64_t x_stride, float* out, int64_t out_stride, int64_t num_rows,
                        int64_t num_columns) {
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < num_columns; ++c) out[r * out_stride + c] = x[r * x_stride + c];
  }
}

inline int64_t attention_key_stride(int64_t length) {
  const int64_t keys = round_up_to_lanes(length);
  // Rows 512 bytes or a multiple apart would share a few cache sets.
  return keys % 128 == 0 ? keys + 16 : keys;
}

constexpr int64_t kMaxUnpackedValues = 64;

/// Sizes and strides that both directions share.
struct AttentionPlan {
  int64_t row_stride, y_stride, key_stride, width, block_rows, group;
  float scale;
};

inline AttentionPlan plan_attention(const AttentionTask& task) {
  AttentionPlan plan;
  plan.row_stride = (task.num_attention_heads + 2 * task.num_key_value_heads) * task.head_dim;
  plan.y_stride = task.num_attention_heads * task.head_dim;
  plan.key_stride = attention_key_stride(task.length);
  plan.width = round_up_to_lanes(task.head_dim);
  plan.block_rows = attention_row_block(task.length);
  plan.group = task.num_attention_heads / task.num_key_value_heads;
  plan.scale = 1.0f / __builtin_sqrtf(static_cast<float>(task.head_dim));
  return plan;
}

/// Scores of query rows first … first + rows − 1 against all keys that they may see, unscaled.
inline void attention_scores(const AttentionTask& task, const AttentionPlan& plan, const float* queries,
                             const float* keys_transposed, int64_t first, int64_t rows, float* scores) {
  multiply({queries + first * plan.row_stride, plan.row_stride, 1, keys_transposed, plan.key_stride, scores,
            plan.key_stride, rows, round_up_to_lanes(task.length), task.head_dim,
            task.causal ? Triangle::kColumns : Triangle::kFull, first, false, task.sliding_window});
}

/// Columns of row r of a block that later products may read.
inline int64_t attention_columns_read(const AttentionTask& task, int64_t first, int64_t row) {
  if (!task.causal) return task.length;
  const int64_t columns = first + (row / kTileRows + 1) * kTileRows;
  return columns < task.length ? columns : task.length;
}

/// Softmax of one row of raw scores in place; zeros up to num_columns, and on to a whole vector. Returns what to take
/// from the scaled scores before their exponentials, and the sum of these: their log-sum-exp is shift + log sum.
struct SoftmaxSum {
  float shift, sum;
};
inline SoftmaxSum attention_softmax(float* row, int64_t num_keys, int64_t num_columns, float scale) {
  const int64_t whole = round_up_to_lanes(num_keys), last = whole - kLanes;
  store(row + last, first_lanes(load(row + last), num_keys - last));
  VecF largest = load(row);
  for (int64_t j = kLanes; j < whole; j += kLanes) largest = max(largest, load(row + j));
  const float shift = horizontal_max(largest) * scale;
  VecF sums = broadcast(0.0f);
  for (int64_t j = 0; j < whole; j += kLanes) {
    const VecF e = exp(load(row + j) * scale - shift);
    store(row + j, e);
    sums += e;
  }
  const float sum = horizontal_sum(sums);
  const float inverse = 1.0f / sum;
  for (int64_t j = 0; j < whole; j += kLanes) store(row + j, load(row + j) * inverse);
  for (int64_t j = whole; j < num_columns; j += kLanes) store(row + j, VecF{});
  return {shift, sum};
}

/// The same for a row that sees nothing before first_key, where scores may never have been computed: zeros there.
inline SoftmaxSum attention_window_softmax(float* row, int64_t first_key, int64_t num_keys, int64_t num_columns,
                                           float scale) {
  const int64_t start = first_key / kLanes * kLanes;
  for (int64_t j = start; j < first_key; ++j) row[j] = -__builtin_inff();
  const SoftmaxSum sum = attention_softmax(row + start, num_keys - start, num_columns - start, scale);
  for (int64_t j = 0; j < first_key; ++j) row[j] = 0;
  return sum;
}

void attention_forward(const AttentionTask& task, float* y, float* lse, float* maps, float* scratch) {
  const AttentionPlan plan = plan_attention(task);
  const int64_t t = task.length, dim = task.head_dim;
  const float* keys = task.qkv + (task.num_attention_heads + task.key_value_head) * dim;
  const float* values = keys + task.num_key_value_heads * dim;
  float* keys_transposed = scratch;                                // [dim, key_stride]
  float* values_packed = keys_transposed + dim * plan.key_stride;  // [t, width]
  float* scores = values_packed + t * plan.width;                  // [block_rows, key_stride]
  float* out = scores + plan.block_rows * plan.key_stride;         // [block_rows, width]
  float* factors = out + plan.block_rows * plan.width;             // [key_stride]
  pack_transposed(keys, plan.row_stride, keys_transposed, plan.key_stride, t, dim);
  // Whole vectors need no packing. Far apart, many rows of values would not stay in the cache.
  const bool reads_values = dim == plan.width && t <= kMaxUnpackedValues;
  if (!reads_values) pack_rows(values, plan.row_stride, values_packed, plan.width, t, dim);

  for (int64_t head = task.key_value_head * plan.group; head < (task.key_value_head + 1) * plan.group; ++head) {
    for (int64_t first = 0; first < t; first += plan.block_rows) {
      const int64_t rows = t - first < plan.block_rows ? t - first : plan.block_rows;
      attention_scores(task, plan, task.qkv + head * dim, keys_transposed, first, rows, scores);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = first + r;
        const int64_t num_keys = task.causal ? i + 1 : t;
        float* row = scores + r * plan.key_stride;
        const SoftmaxSum sum = attention_window_softmax(row, first_key_of(i, task.sliding_window), num_keys,
                                                        attention_columns_read(task, first, r), plan.scale);
        if (lse) lse[i * task.num_attention_heads + head] = sum.shift + __builtin_logf(sum.sum);
        const int64_t map_row = (head * t + i) * t;
        if (maps) {
          for (int64_t j = 0; j < num_keys; ++j) maps[map_row + j] = row[j];
          for (int64_t j = num_keys; j < t; ++j) maps[map_row + j] = 0;
        }
        if (task.dropout_probability > 0) {
          dropout_factors(task.seed, task.stream, task.dropout_probability,
                          task.first_map_element + static_cast<uint64_t>(map_row), num_keys, factors);
          for (int64_t j = 0; j < num_keys; ++j) row[j] *= factors[j];
        }
      }
      float* y_block = y + first * plan.y_stride + head * dim;
      const bool writes_y = dim == plan.width;
      multiply({scores, plan.key_stride, 1, reads_values ? values : values_packed,
                reads_values ? plan.row_stride : plan.width, writes_y ? y_block : out,
                writes_y ? plan.y_stride : plan.width, rows, plan.width, t,
                task.causal ? Triangle::kInnerTo : Triangle::kFull, first, false, task.sliding_window});
      if (!writes_y) unpack_rows(out, plan.width, y_block, plan.y_stride, rows, dim);
    }
  }
}

/// Attention of one query: y [dim] = Σ softmax(scale·query·keysᵀ)·values.
///   keys, values [length, stride] of which dim columns are read; scores [length rounded up to whole vectors]
void attend_row(const float* query, const float* keys, const float* values, int64_t stride, int64_t length, int64_t dim,
                float* y, float* scores) {
  for (int64_t j = 0; j < length; ++j) {
    VecF sum = broadcast(0.0f);
    for_each_vector(dim, [&](int64_t c, auto get, auto) { sum += get(query + c) * get(keys + j * stride + c); });
    scores[j] = horizontal_sum(sum);
  }
  attention_softmax(scores, length, length, 1.0f / __builtin_sqrtf(static_cast<float>(dim)));
  for_each_vector(dim, [&](int64_t c, auto get, auto put) {
    VecF sum = broadcast(0.0f);
    for (int64_t j = 0; j < length; ++j) sum += scores[j] * get(values + j * stride + c);
    put(y + c, sum);
  });
}

/// One row of the backward pass. In: raw scores and d(dropped probabilities). Out: scores ← dropped probabilities,
/// d_scores ← gradient of the raw scores; zeros up to num_columns.
struct AttentionRowGradient {
  float* scores;
  float* d_scores;
  const float* factors;      // null without dropout
  const float* teacher_map;  // null, or the teacher's row
  int64_t first_key, num_keys, num_columns;
  float scale, lse, row_sum /* Σ d_y·y */, map_loss_scale;
};

inline void attention_row_gradient(const AttentionRowGradient& row) {
  const int64_t whole = round_up_to_lanes(row.num_keys), start = row.first_key / kLanes * kLanes;
  float teacher_sum = 0;
  if (row.teacher_map) {
    for (int64_t j = row.first_key; j < row.num_keys; ++j) teacher_sum += row.teacher_map[j];
  }
  // A student row that must follow a teacher's: p·(d_p − row_sum + λ·Σteacher) − λ·teacher.
  const float shift = row.row_sum - row.map_loss_scale * teacher_sum;
  for (int64_t j = row.num_keys; j < whole; ++j) row.scores[j] = row.d_scores[j] = 0;
  for (int64_t j = start; j < whole; j += kLanes) {
    const VecF probability = exp(load(row.scores + j) * row.scale - row.lse);
    VecF d_probability = load(row.d_scores + j);
    VecF dropped = probability;
    if (row.factors) {
      const VecF factor = load(row.factors + j);
      d_probability *= factor;
      dropped *= factor;
    }
    store(row.scores + j, dropped);
    store(row.d_scores + j, probability * (d_probability - shift) * row.scale);
  }
  if (row.teacher_map) {
    const float weight = row.map_loss_scale * row.scale;
    for (int64_t j = row.first_key; j < row.num_keys; ++j) row.d_scores[j] -= weight * row.teacher_map[j];
  }
  const int64_t end = whole < row.num_columns ? row.num_columns : whole;
  for (int64_t j = row.num_keys; j < end; ++j) row.scores[j] = row.d_scores[j] = 0;
  for (int64_t j = 0; j < row.first_key; ++j) row.scores[j] = row.d_scores[j] = 0;
}

void attention_backward(const AttentionTask& task, const float* y, const float* lse, const float* d_y, float* d_qkv,
                        const float* teacher_maps, float map_loss_scale, float* scratch) {
  const AttentionPlan plan = plan_attention(task);
  const int64_t t = task.length, dim = task.head_dim;
  const int64_t key_column = (task.num_attention_heads + task.key_value_head) * dim;
  const int64_t value_column = key_column + task.num_key_value_heads * dim;
  float* keys_transposed = scratch;                                      // [dim, key_stride]
  float* values_transposed = keys_transposed + dim * plan.key_stride;    // [dim, key_stride]
  float* keys_packed = values_transposed + dim * plan.key_stride;        // [t, width]
  float* d_keys = keys_packed + t * plan.width;                          // [t, width]
  float* d_values = d_keys + t * plan.width;                             // [t, width]
  float* scores = d_values + t * plan.width;                             // [block_rows, key_stride]
  float* d_scores = scores + plan.block_rows * plan.key_stride;          // [block_rows, key_stride]
  float* queries_packed = d_scores + plan.block_rows * plan.key_stride;  // [block_rows, width]
  float* d_y_packed = queries_packed + plan.block_rows * plan.width;     // [block_rows, width]
  float* d_queries = d_y_packed + plan.block_rows * plan.width;          // [block_rows, width]
  float* factors = d_queries + plan.block_rows * plan.width;             // [key_stride]
  pack_transposed(task.qkv + key_column, plan.row_stride, keys_transposed, plan.key_stride, t, dim);
  pack_transposed(task.qkv + value_column, plan.row_stride, values_transposed, plan.key_stride, t, dim);
  pack_rows(task.qkv + key_column, plan.row_stride, keys_packed, plan.width, t, dim);
  for (int64_t i = 0; i < t * plan.width; ++i) d_keys[i] = d_values[i] = 0;
  for (int64_t j = 0; j < plan.key_stride; ++j) factors[j] = 0;

  for (int64_t head = task.key_value_head * plan.group; head < (task.key_value_head + 1) * plan.group; ++head) {
    for (int64_t first = 0; first < t; first += plan.block_rows) {
      const int64_t rows = t - first < plan.block_rows ? t - first : plan.block_rows;
      const float* queries = task.qkv + head * dim;
      const float* block_d_y = d_y + first * plan.y_stride + head * dim;
      const float* block_y = y + first * plan.y_stride + head * dim;
      attention_scores(task, plan, queries, keys_transposed, first, rows, scores);
      multiply({block_d_y, plan.y_stride, 1, values_transposed, plan.key_stride, d_scores, plan.key_stride, rows,
                round_up_to_lanes(t), dim, task.causal ? Triangle::kColumns : Triangle::kFull, first, false,
                task.sliding_window});
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = first + r;
        const int64_t map_row = (head * t + i) * t;
        float row_sum = 0;
        for (int64_t c = 0; c < dim; ++c) row_sum += block_d_y[r * plan.y_stride + c] * block_y[r * plan.y_stride + c];
        AttentionRowGradient row{};
        row.scores = scores + r * plan.key_stride;
        row.d_scores = d_scores + r * plan.key_stride;
        row.first_key = first_key_of(i, task.sliding_window);
        row.num_keys = task.causal ? i + 1 : t;
        row.num_columns = attention_columns_read(task, first, r);
        row.scale = plan.scale;
        row.lse = lse[i * task.num_attention_heads + head];
        row.row_sum = row_sum;
        if (teacher_maps) {
          row.teacher_map = teacher_maps + map_row;
          row.map_loss_scale = map_loss_scale;
        }
        if (task.dropout_probability > 0) {
          dropout_factors(task.seed, task.stream, task.dropout_probability,
                          task.first_map_element + static_cast<uint64_t>(map_row), row.num_keys, factors);
          row.factors = factors;
        }
        attention_row_gradient(row);
      }
      pack_rows(queries + first * plan.row_stride, plan.row_stride, queries_packed, plan.width, rows, dim);
      pack_rows(block_d_y, plan.y_stride, d_y_packed, plan.width, rows, dim);
      multiply({d_scores, plan.key_stride, 1, keys_packed, plan.width, d_queries, plan.width, rows, plan.width, t,
                task.causal ? Triangle::kInnerTo : Triangle::kFull, first, false, task.sliding_window});
      unpack_rows(d_queries, plan.width, d_qkv + first * plan.row_stride + head * dim, plan.row_stride, rows, dim);
      // Keys after the block's last row get nothing from it when causal.
      const int64_t seen = task.causal ? first + rows : t;
      const Triangle below = task.causal ? Triangle::kInnerFrom : Triangle::kFull;
      multiply({d_scores, 1, plan.key_stride, queries_packed, plan.width, d_keys, plan.width, seen, plan.width, rows,
                below, first, true, task.sliding_window});
      multiply({scores, 1, plan.key_stride, d_y_packed, plan.width, d_values, plan.width, seen, plan.width, rows, below,
                first, true, task.sliding_window});
    }
  }
  unpack_rows(d_keys, plan.width, d_qkv + key_column, plan.row_stride, t, dim);
  unpack_rows(d_values, plan.width, d_qkv + value_column, plan.row_stride, t, dim);
}

/// Σ teacher·(log teacher − log student), 0·log 0 = 0. A student probability that underflowed counts as the smallest
/// normal number: the divergence stays finite.
double divergence(const float* teacher, const float* student, int64_t count) {
  constexpr int64_t kBlock = 1024;  // float sums stay short
  const VecF smallest = broadcast(__FLT_MIN__);
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    VecF sums = broadcast(0.0f);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const VecF t = load(teacher + i);
      sums += t * (log(max(t, smallest)) - log(max(load(student + i), smallest)));
    }
    double sum = horizontal_sum(sums);
    for (; i < end; ++i) {
      const float s = student[i] < __FLT_MIN__ ? __FLT_MIN__ : student[i];
      if (teacher[i] > 0) sum += static_cast<double>(teacher[i]) * __builtin_logf(teacher[i] / s);
    }
    total += sum;
  }
  return total;
}
