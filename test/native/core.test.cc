#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/arena.h"
#include "core/crc32c.h"
#include "core/memory.h"
#include "core/rng.h"
#include "core/thread_pool.h"
#include "test.h"

using namespace limbeck;

namespace {

struct KnownAnswer {
  uint64_t index, stream, seed;
  uint32_t words[4];
};

// "philox4x32 10" of kat_vectors in Random123 1.14.
const KnownAnswer kPhiloxAnswers[] = {
    {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

}  // namespace

TEST("Philox gives the known answers of Random123") {
  for (const KnownAnswer& answer : kPhiloxAnswers) {
    uint32_t words[4];
    Philox{answer.seed, answer.stream}.block(answer.index, words);
    CHECK(std::memcmp(words, answer.words, sizeof words) == 0);
  }
}

TEST("Philox numbers the words of all blocks in order") {
  const Philox random{5, 6};
  for (uint64_t index = 0; index < 100; ++index) {
    uint32_t words[4];
    random.block(index / 4, words);
    CHECK(random.word(index) == words[index % 4]);
    CHECK(random.uniform(index) == static_cast<float>(words[index % 4] >> 8) / 16777216.0f);
  }
}

TEST("uniform numbers fill [0, 1) evenly") {
  const Philox random{1, 2};
  constexpr int kCount = 100000, kBins = 10;
  int bins[kBins] = {};
  for (uint64_t i = 0; i < kCount; ++i) {
    const float uniform = random.uniform(i);
    CHECK(uniform >= 0 && uniform < 1);
    ++bins[static_cast<int>(uniform * kBins)];
  }
  for (const int bin : bins) CHECK(std::abs(bin - kCount / kBins) < 500);  // 5 standard deviations
}

TEST("normal numbers have the moments of the standard normal distribution, and neighbours do not correlate") {
  const Philox random{1, 3};
  constexpr int kCount = 100000;
  double sum = 0, squares = 0, fourth = 0, products = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double normal = random.normal(i);
    sum += normal;
    squares += normal * normal;
    fourth += normal * normal * normal * normal;
    products += normal * random.normal(i + 1);
  }
  // Five standard deviations of each mean: √(1, 2, 96, 1)/√100,000.
  CHECK(std::fabs(sum / kCount) < 0.016);
  CHECK(std::fabs(squares / kCount - 1) < 0.023);
  CHECK(std::fabs(fourth / kCount - 3) < 0.16);
  CHECK(std::fabs(products / kCount) < 0.016);
}

TEST("another seed, stream or index gives other numbers") {
  const float normal = Philox{1, 2}.normal(3);
  CHECK((Philox{1, 2}.normal(3)) == normal);
  CHECK((Philox{2, 2}.normal(3)) != normal);
  CHECK((Philox{1, 3}.normal(3)) != normal);
  CHECK((Philox{1, 2}.normal(4)) != normal);
  CHECK((Philox{1ull << 40, 2}.word(3)) != (Philox{0, 2}.word(3)));
  CHECK((Philox{1, 1ull << 40}.word(3)) != (Philox{1, 0}.word(3)));
}

TEST("crc32c gives the answers of RFC 3720 and its check value") {
  CHECK(crc32c("123456789", 9) == 0xE3069283u);
  CHECK(crc32c(nullptr, 0) == 0);
  std::vector<unsigned char> bytes(32, 0x00);
  CHECK(crc32c(bytes.data(), 32) == 0x8A9136AAu);
  bytes.assign(32, 0xFF);
  CHECK(crc32c(bytes.data(), 32) == 0x62A8AB43u);
  for (size_t i = 0; i < 32; ++i) bytes[i] = static_cast<unsigned char>(i);
  CHECK(crc32c(bytes.data(), 32) == 0x46DD794Eu);
}

TEST("crc32c of every length and alignment equals the bit-by-bit definition") {
  const Philox random{7, 7};
  std::vector<unsigned char> bytes(64);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(random.word(i));
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t size = 0; begin + size <= bytes.size(); ++size) {
      uint32_t expected = 0xFFFFFFFFu;
      for (size_t i = 0; i < size; ++i) {
        expected ^= bytes[begin + i];
        for (int bit = 0; bit < 8; ++bit) expected = (expected >> 1) ^ ((expected & 1) != 0 ? 0x82F63B78u : 0);
      }
      CHECK(crc32c(bytes.data() + begin, size) == ~expected);
      const size_t half = size / 2;
      CHECK(crc32c(bytes.data() + begin + half, size - half, crc32c(bytes.data() + begin, half)) == ~expected);
    }
  }
}

TEST("an arena hands out aligned memory that does not overlap, also beyond its first block") {
  Arena arena;
  std::vector<std::pair<unsigned char*, int64_t>> pieces;
  for (int64_t size : {1, 63, 64, 65, 0, 1000, 700000, 700000, 5, 3000000}) {
    unsigned char* data = arena.allocate<unsigned char>(size);
    CHECK(is_aligned(data));
    if (size > 0) std::memset(data, static_cast<int>(pieces.size()), static_cast<size_t>(size));
    pieces.emplace_back(data, size);
  }
  int64_t overwritten = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    for (int64_t byte = 0; byte < pieces[i].second; ++byte) overwritten += pieces[i].first[byte] != i;
  }
  CHECK(overwritten == 0);
  CHECK(arena.capacity_bytes() >= 4401198);
}

TEST("reset joins an arena's blocks, so that the same allocations then fit one block and take no more memory") {
  Arena arena;
  for (int i = 0; i < 5; ++i) arena.allocate<float>(200000);
  const size_t capacity = arena.capacity_bytes();
  arena.reset();
  CHECK(arena.capacity_bytes() == capacity);
  float* first = arena.allocate<float>(200000);
  for (int i = 1; i < 5; ++i) CHECK(arena.allocate<float>(200000) == first + 200000 * i);
  CHECK(arena.capacity_bytes() == capacity);
  arena.reset();
  CHECK(arena.allocate<float>(1) == first);
}

TEST("a scope gives back what was allocated in it, across blocks") {
  Arena arena;
  float* outer = arena.allocate<float>(100);
  outer[0] = 3;
  float* in_first_scope = nullptr;
  {
    const Arena::Scope scope(arena);
    in_first_scope = arena.allocate<float>(100);
    arena.allocate<float>(1000000);  // in a second block
  }
  const size_t capacity = arena.capacity_bytes();
  {
    const Arena::Scope scope(arena);
    CHECK(arena.allocate<float>(100) == in_first_scope);
    arena.allocate<float>(1000000);
  }
  CHECK(arena.capacity_bytes() == capacity);
  CHECK(outer[0] == 3);
}

TEST("reserve makes one block ready that later allocations use") {
  Arena arena;
  arena.reserve(5000000);
  const size_t capacity = arena.capacity_bytes();
  CHECK(capacity >= 5000000);
  for (int i = 0; i < 4; ++i) arena.allocate<float>(300000);
  CHECK(arena.capacity_bytes() == capacity);
  arena.reset();
  arena.reserve(100);
  CHECK(arena.capacity_bytes() == capacity);
}

TEST("an arena refuses what the machine does not have and sizes that overflow, and stays usable") {
  Arena arena;
  float* before = arena.allocate<float>(10);
  before[9] = 4;
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.allocate<float>(int64_t{1} << 50));
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.allocate<float>(int64_t{1} << 62));  // 2⁶⁴ bytes
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.allocate<double>((int64_t{1} << 61) + 8));
  CHECK_ERROR("ERR_OUT_OF_MEMORY", arena.allocate<float>(-1));
  CHECK(before[9] == 4);
  float* after = arena.allocate<float>(10);
  CHECK(is_aligned(after) && after != before);
  Arena other;
  CHECK_ERROR("ERR_OUT_OF_MEMORY", other.reserve(size_t{1} << 52));
  CHECK(other.capacity_bytes() == 0);
  CHECK(is_aligned(other.allocate<float>(10)));
}

TEST("the machine has some memory and at least one thread") {
  CHECK(available_memory_bytes() > 0);
  CHECK(available_threads() >= 1);
  CHECK(ThreadPool(0).num_threads() == available_threads());
  CHECK(ThreadPool(1).num_threads() == 1);
  CHECK(ThreadPool(4).num_threads() == 4);
}

TEST("parallel_for calls each index once, on a worker of the pool") {
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    for (const int64_t count : {0, 1, 2, 3, 4, 5, 100, 10007}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      std::atomic<int> strangers{0};
      pool.parallel_for(count, [&](int64_t index, int worker) {
        ++calls[static_cast<size_t>(index)];
        if (worker < 0 || worker >= num_threads) ++strangers;
      });
      for (const auto& number : calls) CHECK(number == 1);
      CHECK(strangers == 0);
    }
    pool.parallel_for(-1, [&](int64_t, int) { CHECK(false); });
  }
}

TEST("no two tasks run on one worker at a time") {
  ThreadPool pool(4);
  std::atomic<int> running[4] = {};
  std::atomic<int> overlaps{0};
  pool.parallel_for(20000, [&](int64_t, int worker) {
    if (++running[worker] != 1) ++overlaps;
    --running[worker];
  });
  CHECK(overlaps == 0);
}

TEST("an exception of a task is rethrown by parallel_for, and the pool is usable afterwards") {
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    for (int64_t round = 0; round < 200; ++round) {
      std::string message;
      std::atomic<int> after_return{0};
      try {
        pool.parallel_for(100, [&](int64_t index, int) {
          if (index == round % 100) throw std::runtime_error("task " + std::to_string(index));
        });
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      CHECK(message == "task " + std::to_string(round % 100));
      pool.parallel_for(10, [&](int64_t, int) { ++after_return; });
      CHECK(after_return == 10);
    }
    CHECK_ERROR("ERR_ABORTED", pool.parallel_for(50, [](int64_t, int) { throw Error("ERR_ABORTED", "all throw"); }));
  }
}

TEST("20,000 tiny rounds end, each with its own sum") {
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    int wrong_rounds = 0;
    for (int64_t round = 0; round < 20000; ++round) {
      const int64_t count = 2 + round % 7;
      std::atomic<int64_t> sum{0};
      pool.parallel_for(count, [&](int64_t index, int) { sum += index + round; });
      wrong_rounds += sum != count * round + count * (count - 1) / 2;
    }
    CHECK(wrong_rounds == 0);
  }
}

TEST("fill_normal gives the same numbers as normal, for every length") {
  const Philox random{9, 4};
  for (const uint64_t count : {0, 1, 3, 4, 5, 63, 64}) {
    std::vector<float> out(count + 1, -99.0f);
    random.fill_normal(out.data(), count);
    bool agrees = out[count] == -99.0f;
    for (uint64_t i = 0; i < count; ++i) agrees = agrees && out[i] == random.normal(i);
    CHECK(agrees);
  }
}

TEST("pools come and go, with and without work") {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(4);
    std::atomic<int> calls{0};
    if (i % 2 == 0) pool.parallel_for(8, [&](int64_t, int) { ++calls; });
    CHECK(calls == (i % 2 == 0 ? 8 : 0));
  }
}

// A worker that loses its processor just before a pool is destroyed must still hear of it. Two pools at a time want
// more processors than there are, or it hardly ever happens; a failure hangs, which main() ends.
TEST("pools end right after hundreds of rounds, two at a time") {
  std::atomic<int64_t> calls{0};
  const auto make_pools = [&] {
    for (int i = 0; i < 3000; ++i) {
      ThreadPool pool(4);
      for (int round = 0; round < 400; ++round) pool.parallel_for(2, [&](int64_t, int) { ++calls; });
    }
  };
  std::thread other(make_pools);
  make_pools();
  other.join();
  CHECK(calls == 2 * 3000 * 400 * 2);
}
