// bench_generate [--threads N] [--rounds N] [--json]: how near generation comes to its floor, reading every weight once
// a token. A GPT-2 of 124M parameters with weights of noise, batch 1, fp32. Reading the weights on the same threads and
// generating a token take turns; what is printed are the medians of rounds of eight turns, and of their ratios. One
// thread is timed by the processor time that it takes, which other work on the machine does not change.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/kernels.h"
#include "model/generate.h"

using namespace limbeck;

namespace {

constexpr int64_t kPromptTokens = 16, kTokensPerRound = 8;

TransformerConfig gpt2_124m() {
  TransformerConfig config{};
  config.vocab_size = 50257;
  config.hidden_size = 768;
  config.num_hidden_layers = 12;
  config.num_attention_heads = config.num_key_value_heads = 12;
  config.head_dim = 64;
  config.intermediate_size = 3072;
  config.max_position_embeddings = 1024;
  config.norm = NormKind::kLayerNorm;
  config.norm_placement = NormPlacement::kBefore;
  config.norm_eps = 1e-5f;
  config.positions = PositionKind::kLearned;
  config.causal = true;
  config.hidden_act = Activation::kGeluTanh;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

/// Any small weights do, and these are made in no time.
void fill(Parameters& parameters) {
  float* values = parameters.values();
  uint32_t state = 1;
  for (int64_t i = 0; i < parameters.flat_count(); ++i) {
    state = state * 1664525 + 1013904223;
    values[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f * 0.03f;
  }
}

double now(bool processor_time) {
  timespec time{};
  clock_gettime(processor_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Reads every cache line of `count` floats, on all threads: one float of each, so that nothing but memory is waited
/// for. Several streams at a time, whose reads overlap; their distance is no power of two, or they would meet in the
/// same sets of the cache.
float read_all(ThreadPool& pool, const float* data, int64_t count, int64_t num_streams) {
  constexpr int64_t kLine = 16, kMaxStreams = 8, kStream = 513 * kLine;
  const int64_t block_floats = num_streams * kStream;
  std::vector<float> partial(static_cast<size_t>(count / block_floats));
  pool.parallel_for(count / block_floats, [&](int64_t block, int) {
    const float* x = data + block * block_floats;
    float sums[kMaxStreams] = {};
    for (int64_t i = 0; i < kStream; i += kLine) {
      for (int64_t j = 0; j < num_streams; ++j) sums[j] += x[j * kStream + i];
    }
    float sum = 0;
    for (float part : sums) sum += part;
    partial[static_cast<size_t>(block)] = sum;
  });
  float total = 0;
  for (float part : partial) total += part;
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  int num_threads = 0, rounds = 9;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--json") {
      json = true;
    } else if (argument == "--threads" && i + 1 < argc) {
      num_threads = std::atoi(argv[++i]);
    } else if (argument == "--rounds" && i + 1 < argc) {
      rounds = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: bench_generate [--threads N] [--rounds N] [--json]\n");
      return 2;
    }
  }
  ThreadPool pool(num_threads);
  Arena scratch, arena;
  Context context{pool, scratch};
  Transformer model(gpt2_124m());
  fill(model.parameters());
  const Parameters& parameters = model.parameters();
  // Of the position table one row is read a token.
  const int64_t weights = parameters.num_parameters() - 1023 * 768;

  const std::vector<int32_t> prompt(kPromptTokens, 5);
  Generation generation(model, prompt, {int64_t{rounds + 1} * kTokensPerRound + 1, 0, 0, 0, {}});
  generation.next(context, arena, 1 + kTokensPerRound, {});
  const auto seconds = [processor_time = pool.num_threads() == 1](auto&& work) {
    const double begin = now(processor_time);
    work();
    return now(processor_time) - begin;
  };
  volatile float sink = 0;
  const auto read_seconds = [&](int64_t num_streams) {
    return seconds([&] { sink = read_all(pool, parameters.values(), parameters.flat_count(), num_streams); }) *
           static_cast<double>(weights) / static_cast<double>(parameters.flat_count());
  };
  // The way of reading that is fastest here.
  constexpr int kTrials = 3;
  int64_t num_streams = 0;
  double fastest = std::numeric_limits<double>::infinity();
  for (const int64_t candidate : {1, 2, 4, 8}) {
    std::vector<double> trials;
    for (int trial = 0; trial < kTrials; ++trial) trials.push_back(read_seconds(candidate));
    if (median(trials) < fastest) {
      fastest = median(trials);
      num_streams = candidate;
    }
  }
  std::vector<double> floors, ours, ratios;
  for (int round = 0; round < rounds; ++round) {
    double floor = 0, own = 0;
    for (int64_t token = 0; token < kTokensPerRound; ++token) {
      floor += read_seconds(num_streams) / kTokensPerRound;
      own += seconds([&] { generation.next(context, arena, 1, {}); }) / kTokensPerRound;
    }
    floors.push_back(floor);
    ours.push_back(own);
    ratios.push_back(floor / own);
  }
  const double gigabytes = static_cast<double>(weights) * sizeof(float) / 1e9;
  const char* format =
      json ? "{\"isa\": \"%s\", \"threads\": %d, \"rounds\": %d, \"floorMs\": %.3f, \"readGBps\": %.2f, "
             "\"tokenMs\": %.3f, \"tokensPerSecond\": %.2f, \"ofFloor\": %.3f}\n"
           : "%s, %d threads, %d rounds: floor %.2f ms (%.1f GB/s), token %.2f ms (%.1f tokens/s), %.3f of the floor\n";
  std::printf(format, cpu_kernels().isa, pool.num_threads(), rounds, median(floors) * 1e3, gigabytes / median(floors),
              median(ours) * 1e3, 1 / median(ours), median(ratios));
}
