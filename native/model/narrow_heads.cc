#include "model/narrow_heads.h"

#include <algorithm>
#include <cmath>

#include "ops/gemm.h"
#include "ops/subspace.h"

namespace limbeck {

namespace {

// An eigenvalue below this share of the largest is rounding noise of float32 products.
constexpr double kLeastShare = 1e-10;

/// What turns the rows of A and B, [channels, ·], into fewer: left·A and right·B.
struct Reduction {
  std::vector<float> left, right;  // [kept, channels]
};

/// (right·B)ᵀ·(left·A) is the best approximation of Bᵀ·A of rank `kept`; both have as much of each singular value.
///   gram_a = A·Aᵀ and gram_b = B·Bᵀ, [channels, channels]
Reduction reduce(Arena& scratch, const double* gram_a, const double* gram_b, int64_t channels, int64_t kept) {
  const Arena::Scope scope(scratch);
  const int64_t n = channels;
  double* values = scratch.allocate<double>(n);
  double* vectors = scratch.allocate<double>(n * n);  // rows
  principal_rotation(scratch, gram_a, n, n, values, vectors);
  double* root = scratch.allocate<double>(n * n);     // gram_a^½
  double* inverse = scratch.allocate<double>(n * n);  // gram_a^−½
  std::fill_n(root, n * n, 0.0);
  std::fill_n(inverse, n * n, 0.0);
  for (int64_t k = 0; k < n; ++k) {
    const double length = std::sqrt(std::max(values[k], kLeastShare * values[0]));
    if (length == 0) break;  // A is zero
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const double product = vectors[k * n + i] * vectors[k * n + j];
        root[i * n + j] += length * product;
        inverse[i * n + j] += product / length;
      }
    }
  }
  // root⁻¹·A has orthonormal rows, so that the singular values of Bᵀ·A are those of Bᵀ·root.
  const auto times = [n](const double* x, const double* y, double* product) {
    std::fill_n(product, n * n, 0.0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < n; ++k) {
        for (int64_t j = 0; j < n; ++j) product[i * n + j] += x[i * n + k] * y[k * n + j];
      }
    }
  };
  double* half = scratch.allocate<double>(n * n);
  double* squared = scratch.allocate<double>(n * n);  // root·gram_b·root
  times(root, gram_b, half);
  times(half, root, squared);
  principal_rotation(scratch, squared, n, n, values, vectors);
  Reduction result{std::vector<float>(static_cast<size_t>(kept * n)),
                   std::vector<float>(static_cast<size_t>(kept * n))};
  for (int64_t k = 0; k < kept; ++k) {
    const double squared_value = std::max(values[k], kLeastShare * values[0]);
    const double share = squared_value > 0 ? std::pow(squared_value, 0.25) : 1;
    for (int64_t j = 0; j < n; ++j) {
      double left = 0, right = 0;
      for (int64_t i = 0; i < n; ++i) {
        left += vectors[k * n + i] * inverse[i * n + j];
        right += vectors[k * n + i] * root[i * n + j];
      }
      result.left[static_cast<size_t>(k * n + j)] = static_cast<float>(left * share);
      result.right[static_cast<size_t>(k * n + j)] = static_cast<float>(right / share);
    }
  }
  return result;
}

class HeadNarrower {
 public:
  HeadNarrower(Context& context, const TransformerConfig& config, const AttentionWeights& full, int64_t head_dim)
      : context_(context), config_(config), full_(full), head_dim_(head_dim) {
    const auto rows = static_cast<size_t>((config.num_attention_heads + 2 * config.num_key_value_heads) * head_dim);
    narrow_.qkv.resize(rows * static_cast<size_t>(config.hidden_size));
    if (!full.qkv_bias.empty()) narrow_.qkv_bias.resize(rows);
    narrow_.output.resize(static_cast<size_t>(config.hidden_size * config.num_attention_heads * head_dim));
  }

  AttentionWeights run() {
    const int64_t H = config_.num_attention_heads, KV = config_.num_key_value_heads, group = H / KV;
    const bool selects = config_.positions == PositionKind::kRotary || config_.qk_norm;
    for (int64_t kv = 0; kv < KV; ++kv) {
      narrow_values(H + KV + kv, kv * group, group);
      if (!selects) narrow_keys(H + kv, kv * group, group);
    }
    for (int64_t head = 0; head < H + KV && selects; ++head) select_rows(head);
    return std::move(narrow_);
  }

 private:
  int64_t channels() const { return config_.head_dim; }

  /// `head` counts queries, then keys, then values.
  const float* rows(int64_t head) const { return full_.qkv.data() + head * channels() * config_.hidden_size; }

  /// gram [channels, channels] += W·Wᵀ + b·bᵀ: a bias is the weight of an input of one.
  void add_gram(int64_t head, double* gram) const {
    const int64_t n = channels(), d = config_.hidden_size;
    add_product({rows(head), d, 1}, {rows(head), 1, d}, d, gram);
    if (full_.qkv_bias.empty()) return;
    const float* bias = full_.qkv_bias.data() + head * n;
    for (int64_t i = 0; i < n * n; ++i) gram[i] += double{bias[i / n]} * bias[i % n];
  }

  /// sum [channels, channels] += A·B
  void add_product(MatrixView a, MatrixView b, int64_t inner, double* sum) const {
    const Arena::Scope scope(context_.scratch);
    const int64_t n = channels();
    float* product = context_.scratch.allocate<float>(n * n);
    gemm(context_, n, n, inner, a, b, nullptr, product, n, false);
    for (int64_t i = 0; i < n * n; ++i) sum[i] += product[i];
  }

  /// Rows of a narrow head = scale·turn [head_dim, channels]·rows of the head.
  void turn_rows(int64_t head, std::vector<float> turn, float scale) {
    const int64_t n = channels(), d = config_.hidden_size;
    for (float& value : turn) value *= scale;
    gemm(context_, head_dim_, d, n, {turn.data(), n, 1}, {rows(head), d, 1}, nullptr,
         narrow_.qkv.data() + head * head_dim_ * d, d, false);
    if (full_.qkv_bias.empty()) return;
    gemm(context_, head_dim_, 1, n, {turn.data(), n, 1}, {full_.qkv_bias.data() + head * n, 1, 1}, nullptr,
         narrow_.qkv_bias.data() + head * head_dim_, 1, false);
  }

  void select_rows(int64_t head) {
    const std::vector<int64_t> kept = head_channels(config_, head_dim_);
    std::vector<float> turn(static_cast<size_t>(head_dim_ * channels()));
    for (int64_t i = 0; i < head_dim_; ++i) {
      turn[static_cast<size_t>(i * channels() + kept[static_cast<size_t>(i)])] = 1;
    }
    turn_rows(head, std::move(turn), 1);
  }

  void narrow_values(int64_t value_head, int64_t first_query, int64_t group) {
    const int64_t n = channels(), d = config_.hidden_size, stride = config_.attention_size();
    const Arena::Scope scope(context_.scratch);
    double* values = zeros();
    double* outputs = zeros();
    add_gram(value_head, values);
    for (int64_t head = first_query; head < first_query + group; ++head) {
      const float* columns = full_.output.data() + head * n;  // [d, channels]
      add_product({columns, 1, stride}, {columns, stride, 1}, d, outputs);
    }
    Reduction reduction = reduce(context_.scratch, values, outputs, n, head_dim_);
    for (int64_t head = first_query; head < first_query + group; ++head) {
      gemm(context_, d, head_dim_, n, {full_.output.data() + head * n, stride, 1}, {reduction.right.data(), 1, n},
           nullptr, narrow_.output.data() + head * head_dim_, config_.num_attention_heads * head_dim_, false);
    }
    turn_rows(value_head, std::move(reduction.left), 1);
  }

  void narrow_keys(int64_t key_head, int64_t first_query, int64_t group) {
    const Arena::Scope scope(context_.scratch);
    double* keys = zeros();
    double* queries = zeros();
    add_gram(key_head, keys);
    for (int64_t head = first_query; head < first_query + group; ++head) add_gram(head, queries);
    Reduction reduction = reduce(context_.scratch, keys, queries, channels(), head_dim_);
    // Scores are divided by √head_dim, which is smaller now.
    const float scale = std::sqrt(static_cast<float>(head_dim_) / static_cast<float>(channels()));
    for (int64_t head = first_query; head < first_query + group; ++head) turn_rows(head, reduction.right, scale);
    turn_rows(key_head, std::move(reduction.left), 1);
  }

  double* zeros() const {
    const int64_t count = channels() * channels();
    double* values = context_.scratch.allocate<double>(count);
    std::fill_n(values, count, 0.0);
    return values;
  }

  Context& context_;
  const TransformerConfig& config_;
  const AttentionWeights& full_;
  int64_t head_dim_;
  AttentionWeights narrow_;
};

}  // namespace

std::vector<int64_t> head_channels(const TransformerConfig& source, int64_t head_dim) {
  const bool has_pairs = source.positions == PositionKind::kRotary;
  const int64_t count = has_pairs ? head_dim / 2 : head_dim;
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < count; ++i) {
    kept.push_back(has_pairs ? (2 * i * source.head_dim + head_dim) / (2 * head_dim)  // the nearest to i·source/target
                             : (2 * i + 1) * source.head_dim / (2 * head_dim));
  }
  for (int64_t i = 0; i < count && has_pairs; ++i) kept.push_back(kept[static_cast<size_t>(i)] + source.head_dim / 2);
  return kept;
}

AttentionWeights narrow_heads(Context& context, const TransformerConfig& config, const AttentionWeights& weights,
                              int64_t head_dim) {
  return HeadNarrower(context, config, weights, head_dim).run();
}

}  // namespace limbeck
