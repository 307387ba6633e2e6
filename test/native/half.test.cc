#include "ops/half.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.h"
#include "test.h"

using namespace limbeck;

namespace {

double widen_float16(uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  const double magnitude = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                           : exponent == 0 ? fraction * std::ldexp(1.0, -24)
                                           : (1024 + fraction) * std::ldexp(1.0, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

double widen_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// No neighbour of the result is nearer; of two that are as near, the one with an even last bit.
bool is_nearest(float x, uint16_t half, double (*widen)(uint16_t)) {
  const double error = std::fabs(widen(half) - double{x});
  for (const uint16_t neighbour : {static_cast<uint16_t>(half - 1), static_cast<uint16_t>(half + 1)}) {
    const double other = std::fabs(widen(neighbour) - double{x});
    if (other < error || (other == error && (half & 1) != 0)) return false;
  }
  return true;
}

}  // namespace

TEST("half floats are the nearest, ties to even, at every magnitude") {
  const Philox random{5, 5};
  std::vector<float> x;
  for (int exponent = -26; exponent <= 15; ++exponent) {
    for (uint64_t i = 0; i < 200; ++i) {
      const float fraction = 1.0f + static_cast<float>(random.word(i) % 8192) / 8192.0f;  // ties among them
      x.push_back(std::ldexp(i % 2 == 0 ? fraction : -fraction, exponent));
    }
  }
  std::vector<uint16_t> half(x.size()), brain(x.size());
  to_float16(x.data(), half.data(), static_cast<int64_t>(x.size()));
  to_bfloat16(x.data(), brain.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::fabs(x[i]) < 65504) CHECK(is_nearest(x[i], half[i], widen_float16));
    CHECK(is_nearest(x[i], brain[i], widen_bfloat16));
  }
}

TEST("half floats keep zeros, infinities and NaN, and overflow to infinity") {
  const float infinite = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0.0f, -0.0f, infinite, -infinite, NAN, 65519.996f, 65520.0f, -1e30f};
  std::vector<uint16_t> half(x.size()), brain(x.size());
  to_float16(x.data(), half.data(), static_cast<int64_t>(x.size()));
  to_bfloat16(x.data(), brain.data(), static_cast<int64_t>(x.size()));
  CHECK(half[0] == 0 && half[1] == 0x8000 && half[2] == 0x7C00 && half[3] == 0xFC00);
  CHECK(std::isnan(widen_float16(half[4])) && half[5] == 0x7BFF && half[6] == 0x7C00 && half[7] == 0xFC00);
  CHECK(brain[0] == 0 && brain[1] == 0x8000 && brain[2] == 0x7F80 && brain[3] == 0xFF80);
  CHECK(std::isnan(widen_bfloat16(brain[4])));
}
