#include "ops/packed_logits.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"

namespace limbeck {

namespace {

constexpr uint32_t kHighestCode = (1u << kPackedCodeBits) - 1;
constexpr int64_t kTaskRows = 64;

int64_t index_bits(int64_t vocab_size) {
  int64_t bits = 1;
  while ((int64_t{1} << bits) < vocab_size) ++bits;
  return bits;
}

[[noreturn]] void outside(int64_t index, int64_t vocab_size) {
  throw Error("ERR_INVALID_ARGUMENT", "Expected indices of top-k logits below the vocabulary of " +
                                          std::to_string(vocab_size) + ", got " + std::to_string(index) + ".");
}

/// Bits from the lowest of each byte on.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* bytes) : bytes_(bytes) {}
  void write(uint32_t value, int64_t bits) {
    held_ |= uint64_t{value} << count_;
    for (count_ += bits; count_ >= 8; count_ -= 8, held_ >>= 8) *bytes_++ = static_cast<uint8_t>(held_);
  }
  void finish() {
    if (count_ > 0) *bytes_ = static_cast<uint8_t>(held_);
  }

 private:
  uint8_t* bytes_;
  uint64_t held_ = 0;
  int64_t count_ = 0;
};

class BitReader {
 public:
  explicit BitReader(const uint8_t* bytes) : bytes_(bytes) {}
  uint32_t read(int64_t bits) {
    for (; count_ < bits; count_ += 8) held_ |= uint64_t{*bytes_++} << count_;
    const uint32_t value = static_cast<uint32_t>(held_ & ((uint64_t{1} << bits) - 1));
    held_ >>= bits;
    count_ -= bits;
    return value;
  }

 private:
  const uint8_t* bytes_;
  uint64_t held_ = 0;
  int64_t count_ = 0;
};

/// −log p of a class, as a code.
uint32_t encode(double negative_log) {
  return static_cast<uint32_t>(std::clamp(std::nearbyint(negative_log / kPackedStep), 0.0, double{kHighestCode}));
}

/// p of each code: there are few, and exp() would be most of the work.
const double* probabilities() {
  static const auto table = [] {
    std::array<double, kHighestCode + 1> p{};
    for (uint32_t code = 0; code <= kHighestCode; ++code) p[code] = std::exp(-kPackedStep * code);
    return p;
  }();
  return table.data();
}

}  // namespace

int64_t packed_row_bytes(int64_t top_k, int64_t vocab_size) {
  const int64_t bits = top_k * (index_bits(vocab_size) + kPackedCodeBits) + kPackedCodeBits;
  return static_cast<int64_t>(sizeof(float)) + (bits + 7) / 8;
}

void pack_top_k(const int32_t* indices, const float* values, const float* log_sum_exp, int64_t num_rows, int64_t top_k,
                int64_t vocab_size, uint8_t* packed) {
  const int64_t row_bytes = packed_row_bytes(top_k, vocab_size), bits = index_bits(vocab_size);
  for (int64_t row = 0; row < num_rows; ++row, packed += row_bytes, indices += top_k, values += top_k) {
    const float lse = log_sum_exp[row];
    std::memcpy(packed, &lse, sizeof(float));
    BitWriter writer(packed + sizeof(float));
    double listed = 0;  // probability of the k classes
    for (int64_t i = 0; i < top_k; ++i) {
      if (indices[i] < 0 || indices[i] >= vocab_size) outside(indices[i], vocab_size);
      const double log_p = double{values[i]} - double{lse};
      if (!std::isfinite(lse) || std::isnan(log_p)) {
        throw Error("ERR_NOT_FINITE", "Logits " + std::to_string(i) + " of row " + std::to_string(row) + " is " +
                                          std::to_string(values[i]) + ", of log-sum-exp " + std::to_string(lse) + ".");
      }
      listed += std::exp(log_p);
      writer.write(static_cast<uint32_t>(indices[i]), bits);
      writer.write(encode(-log_p), kPackedCodeBits);
    }
    writer.write(listed < 1 ? encode(-std::log1p(-listed)) : kHighestCode, kPackedCodeBits);
    writer.finish();
  }
}

void unpack_top_k(const uint8_t* packed, int64_t num_rows, int64_t top_k, int64_t vocab_size, int32_t* indices,
                  float* values, float* log_sum_exp) {
  const int64_t row_bytes = packed_row_bytes(top_k, vocab_size), bits = index_bits(vocab_size);
  const double* p = probabilities();
  for (int64_t row = 0; row < num_rows; ++row, packed += row_bytes, indices += top_k, values += top_k) {
    float lse;
    std::memcpy(&lse, packed, sizeof(float));
    BitReader reader(packed + sizeof(float));
    double sum = 0;  // of the k + 1 classes
    for (int64_t i = 0; i < top_k; ++i) {
      const uint32_t index = reader.read(bits);
      if (index >= static_cast<uint64_t>(vocab_size)) outside(index, vocab_size);
      const uint32_t code = reader.read(kPackedCodeBits);
      indices[i] = static_cast<int32_t>(index);
      values[i] = static_cast<float>(double{lse} - kPackedStep * code);
      sum += p[code];
    }
    sum += p[reader.read(kPackedCodeBits)];
    log_sum_exp[row] = static_cast<float>(double{lse} + std::log(sum));
  }
}

void unpack_top_k(Context& context, const uint8_t* packed, int64_t num_rows, int64_t top_k, int64_t vocab_size,
                  int32_t* indices, float* values, float* log_sum_exp) {
  const int64_t row_bytes = packed_row_bytes(top_k, vocab_size);
  context.pool.parallel_for((num_rows + kTaskRows - 1) / kTaskRows, [&](int64_t task, int) {
    const int64_t begin = task * kTaskRows, count = std::min(kTaskRows, num_rows - begin);
    unpack_top_k(packed + begin * row_bytes, count, top_k, vocab_size, indices + begin * top_k, values + begin * top_k,
                 log_sum_exp + begin);
  });
}

}  // namespace limbeck
