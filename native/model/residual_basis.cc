#include "model/residual_basis.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "ops/gemm.h"
#include "ops/subspace.h"

namespace limbeck {

namespace {

class ResidualBasis {
 public:
  ResidualBasis(Context& context, const float* components, int64_t rows, int64_t columns)
      : context_(context), rows_(rows), columns_(columns), p_(components, components + rows * columns) {}

  void turn(const float* gain, bool removes_mean) {
    // What the source's layer norms remove, in the target's channels, where P keeps its share of it; else what carries
    // least, the last row.
    const bool keeps_mean = removes_mean && squared_length(mean_direction()) > 0.5 * rows_ / columns_;
    make_diagonal(gain, removes_mean && !keeps_mean ? rows_ - 1 : rows_);
    if (!removes_mean) return;
    std::vector<double> removed(static_cast<size_t>(rows_));
    removed.back() = 1;
    if (keeps_mean) {
      removed = mean_direction();
      for (int64_t r = 0; r < rows_; ++r) {
        double& value = removed[static_cast<size_t>(r)];
        if (value >= 0) continue;
        value = -value;
        for (int64_t c = 0; c < columns_; ++c) at(r, c) = -at(r, c);
      }
    }
    rotate_onto_mean(removed);
  }

  std::vector<float> take() { return std::move(p_); }

 private:
  float& at(int64_t row, int64_t column) { return p_[static_cast<size_t>(row * columns_ + column)]; }

  /// P·1/√columns
  std::vector<double> mean_direction() {
    std::vector<double> direction(static_cast<size_t>(rows_));
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < columns_; ++c) direction[static_cast<size_t>(r)] += at(r, c);
      direction[static_cast<size_t>(r)] /= std::sqrt(static_cast<double>(columns_));
    }
    return direction;
  }

  static double squared_length(const std::vector<double>& x) {
    return std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  }

  /// Makes P·diag(gain)·Pᵀ diagonal over the first `count` rows.
  void make_diagonal(const float* gain, int64_t count) {
    const auto [least, most] = std::minmax_element(gain, gain + columns_);
    if (*most - *least <= 1e-6f * std::fabs(*most)) return;
    const Arena::Scope scope(context_.scratch);
    Arena& scratch = context_.scratch;
    float* scaled = scratch.allocate<float>(count * columns_);  // P·diag(gain)
    for (int64_t i = 0; i < count * columns_; ++i) scaled[i] = p_[static_cast<size_t>(i)] * gain[i % columns_];
    float* product = scratch.allocate<float>(count * count);
    gemm(context_, count, count, columns_, {scaled, columns_, 1}, {p_.data(), 1, columns_}, nullptr, product, count,
         false);
    double* symmetric = scratch.allocate<double>(count * count);
    std::copy(product, product + count * count, symmetric);
    double* eigenvalues = scratch.allocate<double>(count);
    double* rotation = scratch.allocate<double>(count * count);
    principal_rotation(scratch, symmetric, count, count, eigenvalues, rotation);
    std::copy(rotation, rotation + count * count, product);
    std::copy_n(p_.data(), count * columns_, scaled);
    gemm(context_, count, columns_, count, {product, count, 1}, {scaled, columns_, 1}, nullptr, p_.data(), columns_,
         false);
  }

  /// Rotates the rows, in one plane, so that `direction` becomes the mean of the channels: with a and b of length 1 and
  /// aᵀb ≥ 0, x − (a + b)·(a + b)ᵀx/(1 + aᵀb) + 2·b·aᵀx takes a to b. The closer the two, the less else changes.
  void rotate_onto_mean(const std::vector<double>& direction) {
    const double length = std::sqrt(squared_length(direction)), b = 1 / std::sqrt(static_cast<double>(rows_));
    std::vector<double> a;
    for (double value : direction) a.push_back(value / length);
    const double cosine = b * std::accumulate(a.begin(), a.end(), 0.0);
    for (int64_t c = 0; c < columns_; ++c) {
      double along_a = 0, along_b = 0;
      for (int64_t r = 0; r < rows_; ++r) {
        along_a += a[static_cast<size_t>(r)] * at(r, c);
        along_b += b * at(r, c);
      }
      const double along_both = (along_a + along_b) / (1 + cosine);
      for (int64_t r = 0; r < rows_; ++r) {
        const double change = 2 * b * along_a - (a[static_cast<size_t>(r)] + b) * along_both;
        at(r, c) = static_cast<float>(at(r, c) + change);
      }
    }
  }

  Context& context_;
  int64_t rows_, columns_;
  std::vector<float> p_;
};

}  // namespace

std::vector<float> residual_basis(Context& context, const float* components, int64_t rows, int64_t columns,
                                  const float* gain, bool removes_mean) {
  ResidualBasis basis(context, components, rows, columns);
  basis.turn(gain, removes_mean);
  return basis.take();
}

}  // namespace limbeck
