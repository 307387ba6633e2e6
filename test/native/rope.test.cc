#include "model/rope.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "test.h"

using namespace limbeck;

namespace {

constexpr double kTheta = 10000;
constexpr int64_t kDim = 64;
constexpr double kTwoPi = 6.283185307179586;

const std::vector<double>& plain() {
  static const std::vector<double> frequencies = rotary_frequencies({}, kTheta, kDim);
  return frequencies;
}

bool is_close(double a, double b) { return std::fabs(a - b) <= 1e-12 * std::fabs(b); }

}  // namespace

TEST("rotary frequencies fall from 1 to nearly 1/theta") {
  CHECK(plain().size() == 32);
  CHECK(plain()[0] == 1.0);
  CHECK(is_close(plain()[16], 0.01));
  CHECK(is_close(plain()[31], std::pow(kTheta, -62.0 / 64.0)));
}

TEST("linear scaling slows all pairs alike") {
  RopeScaling scaling;
  scaling.type = RopeType::kLinear;
  scaling.factor = 4;
  const auto frequencies = rotary_frequencies(scaling, kTheta, kDim);
  for (size_t j = 0; j < frequencies.size(); ++j) CHECK(is_close(frequencies[j], plain()[j] / 4));
}

TEST("llama3 scaling keeps fast pairs, slows slow ones, and blends by turns between") {
  RopeScaling scaling;
  scaling.type = RopeType::kLlama3;
  scaling.factor = 8;
  scaling.low_freq_factor = 1;
  scaling.high_freq_factor = 4;
  scaling.original_max_position_embeddings = 512;
  const auto frequencies = rotary_frequencies(scaling, kTheta, kDim);
  bool has_blend = false;
  for (size_t j = 0; j < frequencies.size(); ++j) {
    const double wavelength = kTwoPi / plain()[j];
    double expected = plain()[j];
    if (wavelength > 512.0 / 1) {
      expected /= 8;
    } else if (wavelength > 512.0 / 4) {
      const double smooth = (512.0 / wavelength - 1) / (4 - 1);
      expected = (1 - smooth) * plain()[j] / 8 + smooth * plain()[j];
      has_blend = true;
    }
    CHECK(is_close(frequencies[j], expected));
  }
  CHECK(has_blend);
}

TEST("yarn keeps fast pairs, slows slow ones, and blends by index between") {
  RopeScaling scaling;
  scaling.type = RopeType::kYarn;
  scaling.factor = 4;
  scaling.original_max_position_embeddings = 2048;
  const auto frequencies = rotary_frequencies(scaling, kTheta, kDim);
  // d·ln(2048/(32·2π))/(2·ln θ) = 8.06 and, for one turn, 20.10: whole indices 8 and 21.
  for (size_t j = 0; j < frequencies.size(); ++j) {
    const double share = j <= 8 ? 0 : j >= 21 ? 1 : (static_cast<double>(j) - 8) / 13;
    CHECK(is_close(frequencies[j], plain()[j] * (share / 4 + 1 - share)));
  }
}

TEST("yarn with bounds that meet steps at once") {
  RopeScaling scaling;
  scaling.type = RopeType::kYarn;
  scaling.factor = 2;
  scaling.original_max_position_embeddings = 5;  // both bounds fall on index 0
  const auto frequencies = rotary_frequencies(scaling, kTheta, kDim);
  CHECK(frequencies[0] == 1.0);
  CHECK(is_close(frequencies[1], plain()[1] / 2));
}
