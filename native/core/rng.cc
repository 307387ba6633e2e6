#include "core/rng.h"

#include <cmath>

namespace limbeck {

void Philox::block(uint64_t index, uint32_t out[4]) const {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

uint32_t Philox::word(uint64_t index) const {
  uint32_t words[4];
  block(index / 4, words);
  return words[index % 4];
}

namespace {

/// Two normals from two words (Box & Muller 1958, Ann. Math. Statist. 29(2)).
void box_muller(const uint32_t pair[2], float out[2]) {
  const double radius = std::sqrt(-2 * std::log((pair[0] + 1.0) * 0x1p-32));
  const double angle = 6.283185307179586 * (pair[1] * 0x1p-32);
  out[0] = static_cast<float>(radius * std::cos(angle));
  out[1] = static_cast<float>(radius * std::sin(angle));
}

}  // namespace

float Philox::normal(uint64_t index) const {
  uint32_t words[4];
  block(index / 4, words);
  float pair[2];
  box_muller(words + (index % 4 < 2 ? 0 : 2), pair);
  return pair[index % 2];
}

void Philox::fill_normal(float* out, uint64_t count) const {
  for (uint64_t begin = 0; begin < count; begin += 4) {
    uint32_t words[4];
    block(begin / 4, words);
    float normals[4];
    box_muller(words, normals);
    box_muller(words + 2, normals + 2);
    for (uint64_t i = 0; i < 4 && begin + i < count; ++i) out[begin + i] = normals[i];
  }
}

}  // namespace limbeck
