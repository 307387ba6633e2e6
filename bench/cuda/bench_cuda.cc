// Whole models on the GPU, through the functions that the addon calls:
//   bench_cuda [--library PATH] [--parts train,extract,kd,sequence,request,rank] [--out LINES] [--rounds 7]
//              [--max-seconds 60 (of a part)] [--device 0] [--seed 1] [--tiny] [--tune]
//              [--batches 32,64,16,4 (of train)] [--rows kd-B66,extract-T1024-B33 (of all, these alone)]
//              [--once (two steps, not timed: for a profiler)]
// Weights and data are random. A row that fails says so and does not stop the rest.

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>

#include "cuda/api.h"
#include "json_lines.h"
#include "model/parameters.h"

namespace {

using namespace limbeck;
using namespace limbeck_bench;
using cuda::Api;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

const Api* api = nullptr;
const char* library_problem = nullptr;

void open_library(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    library_problem = dlerror();
    return;
  }
  const auto get_api = reinterpret_cast<const Api* (*)(uint32_t)>(dlsym(library, "limbeck_cuda_api"));
  api = get_api == nullptr ? nullptr : get_api(cuda::kApiVersion);
  if (api == nullptr) library_problem = "it has no such version of the interface";
  // The last functions came later than the libraries that this one is compared with: see has_function().
  if (api != nullptr && (api->size_bytes < offsetof(Api, set_mlp_bytes) || api->size_bytes > sizeof(Api))) {
    api = nullptr;
    library_problem = "its table of functions has another size";
  }
}

/// Of the library, which may be older.   offset: in Api
bool has_function(size_t offset) { return api->size_bytes > offset; }

[[noreturn]] void raise(const cuda::ApiError& error) {
  throw std::runtime_error(std::string(error.code) + ": " + error.message);
}
void check(int32_t result, const cuda::ApiError& error) {
  if (result != 0) raise(error);
}

TransformerConfig gpt2_config(int64_t vocab_size, int64_t length, int64_t layers, int64_t hidden_size, int64_t heads) {
  TransformerConfig config{};
  config.vocab_size = vocab_size;
  config.hidden_size = hidden_size;
  config.num_hidden_layers = layers;
  config.num_attention_heads = config.num_key_value_heads = heads;
  config.head_dim = hidden_size / heads;
  config.intermediate_size = 4 * hidden_size;
  config.max_position_embeddings = length;
  config.norm = NormKind::kLayerNorm;
  config.norm_placement = NormPlacement::kBefore;
  config.norm_eps = 1e-5f;
  config.positions = PositionKind::kLearned;
  config.rope_theta = 10000;
  config.causal = true;
  config.hidden_act = Activation::kGeluTanh;
  config.qkv_bias = config.attention_output_bias = config.mlp_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

using EnginePointer = std::unique_ptr<cuda::Engine, void (*)(cuda::Engine*)>;
using ModelPointer = std::unique_ptr<cuda::Model, void (*)(cuda::Model*)>;
using TrainerPointer = std::unique_ptr<cuda::Trainer, void (*)(cuda::Trainer*)>;

ModelPointer make_model(cuda::Engine* engine, const TransformerConfig& config, Random& random) {
  cuda::ApiError error{};
  ModelPointer model(api->create_model(engine, &config, sizeof(config), &error), api->destroy_model);
  if (model == nullptr) raise(error);
  int64_t flat_count = 0;
  const std::vector<Parameter> list = list_parameters(config, &flat_count);
  std::vector<float> flat(static_cast<size_t>(flat_count));
  for (const Parameter& parameter : list) {
    float* values = flat.data() + parameter.offset;
    const bool is_gain = parameter.name.find("norm.weight") != std::string::npos;
    // Uniform with the deviation 0.02 for matrices; gains near 1, biases near 0.
    const float width = parameter.shape.size() >= 2 ? 0.02f * 1.7320508f : 0.01f;
    for (int64_t i = 0; i < parameter.count; ++i) {
      values[i] = (is_gain ? 1.0f : 0.0f) + width * static_cast<float>(2 * random.uniform() - 1);
    }
  }
  check(api->set_parameters(model.get(), flat.data(), &error), error);
  return model;
}

TrainerPointer make_trainer(cuda::Model* model) {
  cuda::ApiOptimizer optimizer{};
  optimizer.kind = cuda::ApiOptimizerKind::kAdamW;
  optimizer.beta1 = 0.9f;
  optimizer.beta2 = 0.95f;
  optimizer.epsilon = 1e-8f;
  optimizer.weight_decay = 0.1f;
  optimizer.max_grad_norm = 1;
  cuda::ApiError error{};
  TrainerPointer trainer(api->create_trainer(model, &optimizer, &error), api->destroy_trainer);
  if (trainer == nullptr) raise(error);
  return trainer;
}

struct Tokens {
  std::vector<int32_t> ids, labels, offsets;
  cuda::ApiBatch batch() const {
    return {ids.data(), offsets.data(), nullptr, static_cast<int64_t>(ids.size()),
            static_cast<int64_t>(offsets.size()) - 1};
  }
};

/// skewed: P(id) ~ 1/id, as items are.
Tokens make_tokens(Random& random, int64_t batch, int64_t length, int64_t vocab_size, bool skewed) {
  Tokens tokens;
  auto draw = [&] {
    if (!skewed) return random.below(vocab_size);
    const double id = std::exp(random.uniform() * std::log(static_cast<double>(vocab_size))) - 1;
    return static_cast<int32_t>(std::min(static_cast<double>(vocab_size - 1), std::max(0.0, id)));
  };
  for (int64_t i = 0; i < batch * length; ++i) {
    tokens.ids.push_back(draw());
    tokens.labels.push_back(draw());
  }
  for (int64_t s = 0; s <= batch; ++s) tokens.offsets.push_back(static_cast<int32_t>(s * length));
  return tokens;
}

struct Run {
  Options options;
  JsonLines lines;
  bool tiny;
  int rounds;
  double max_seconds;
  uint64_t seed;
  cuda::Engine* engine;
  Clock::time_point part_begin = Clock::now();

  bool is_over() const { return seconds_since(part_begin) > max_seconds; }
  bool wants(const std::string& name) const { return options.lists("--rows", name); }

  /// Milliseconds a step, by the host's clock: every call returns after its work is done, or that of the call before.
  std::vector<double> time_rounds(const std::function<void()>& step, double round_seconds) {
    const bool once = options.has("--once");
    for (int i = 0; i < (tiny || once ? 1 : 3); ++i) step();
    const auto begin = Clock::now();
    step();
    if (once) return {1e3 * seconds_since(begin)};
    const int steps = tiny ? 1 : std::max(1, std::min(50, static_cast<int>(round_seconds / seconds_since(begin))));
    std::vector<double> milliseconds;
    for (int round = 0; round < rounds; ++round) {
      const auto round_begin = Clock::now();
      for (int i = 0; i < steps; ++i) step();
      milliseconds.push_back(1e3 * seconds_since(round_begin) / steps);
      if (round >= 2 && is_over()) break;
    }
    return milliseconds;
  }

  void row(const std::string& name, const std::string& variant, const std::function<void()>& body) {
    if (is_over()) return lines.error(name, variant, "left out: the part's time was over");
    try {
      body();
    } catch (const std::exception& error) {
      lines.error(name, variant, error.what());
    }
  }
};

constexpr int kBatches = 4;  // taken in turns

void finish_step(cuda::Trainer* trainer) {
  cuda::ApiError error{};
  cuda::ApiStepResult result{};
  check(api->finish_step(trainer, &result, &error), error);
  if (!std::isfinite(result.loss) || result.loss <= 0) throw std::runtime_error("the loss is not finite and positive");
}

cuda::ApiStep make_step(const Tokens& tokens) {
  cuda::ApiStep step{};
  step.batch = tokens.batch();
  step.labels = tokens.labels.data();
  step.step_tokens = step.step_labels = static_cast<int64_t>(tokens.labels.size());
  step.learning_rate = 1e-4f;
  step.dropout_seed = -1;
  step.ce = step.temperature = step.fusion = step.gate = 1;
  return step;
}

void time_training(Run& run, const std::string& name, const std::string& variant, cuda::Trainer* trainer,
                   const std::vector<Tokens>& batches, const std::function<void(cuda::ApiStep&)>& change, double count,
                   const char* unit) {
  size_t turn = 0;
  // Two in flight, as training has them: a step is begun, then the one before is waited for.
  bool is_one_begun = false;
  const std::vector<double> times = run.time_rounds(
      [&] {
        cuda::ApiStep step = make_step(batches[turn++ % batches.size()]);
        change(step);
        cuda::ApiError error{};
        check(api->begin_step(trainer, &step, 1, &error), error);
        if (is_one_begun) finish_step(trainer);
        is_one_begun = true;
      },
      0.3);
  finish_step(trainer);
  run.lines.row(name, variant, count / median(times) * 1e3, unit, times);
}

TransformerConfig gpt2(const Run& run, int64_t length) {
  return run.tiny ? gpt2_config(101, length, 2, 32, 2) : gpt2_config(50257, length, 12, 768, 12);
}

/// The table takes the best of a row's batches. 33 · 1,024 tokens are 264 tiles of 128 rows, two for each of an H200's
/// 132 multiprocessors: no round of a product's tiles leaves some idle.
std::string of_batch(const std::string& row, int64_t batch) { return row + "-B" + std::to_string(batch); }

void bench_train(Run& run) {
  Random random(run.seed);
  const int64_t length = run.tiny ? 16 : 1024;
  const TransformerConfig config = gpt2(run, length);
  std::vector<int64_t> sizes;
  std::stringstream list(run.options.get("--batches", run.tiny ? "2" : "64,66,128,32,4"));
  for (std::string size; std::getline(list, size, ',');) sizes.push_back(std::atoll(size.c_str()));
  run.row("train", "bf16", [&] {
    const ModelPointer model = make_model(run.engine, config, random);
    const TrainerPointer trainer = make_trainer(model.get());
    for (int64_t batch : sizes) {
      const std::string name = of_batch("train", batch);
      if (!run.wants(name)) continue;
      run.row(name, "bf16", [&] {
        std::vector<Tokens> batches;
        for (int i = 0; i < kBatches; ++i) {
          batches.push_back(make_tokens(random, batch, length, config.vocab_size, false));
        }
        time_training(
            run, name, "bf16", trainer.get(), batches, [](cuda::ApiStep&) {}, static_cast<double>(batch * length),
            "tokens/s");
      });
    }
  });
}

/// Last hidden states of one batch after the other, in arrays of the host. As extraction does, kPasses are in flight: a
/// step begins one, and waits for the oldest.
class Extraction {
 public:
  Extraction(cuda::Model* model, int64_t layer, int64_t count) : model_(model), layer_(layer) {
    for (std::vector<float>& hidden : hidden_) hidden.resize(static_cast<size_t>(count));
  }

  void step(const Tokens& tokens) {
    std::vector<float>& hidden = hidden_[turn_ % kPasses];
    for (size_t i = 0; i < kSamples; ++i) hidden[sample(i)] = NAN;
    running_.emplace_back(begin(tokens, hidden.data()), api->destroy_forward);
    ++turn_;
    if (running_.size() == kPasses) finish_oldest();
  }
  /// Finishes what is in flight; the last pass must have given the bits of one that runs alone.
  void check_last(const Tokens& tokens) {
    while (!running_.empty()) finish_oldest();
    const std::vector<float> last = hidden_[(turn_ - 1) % kPasses];
    step(tokens);
    finish_oldest();
    const std::vector<float>& alone = hidden_[(turn_ - 1) % kPasses];
    if (std::memcmp(last.data(), alone.data(), last.size() * sizeof(float)) != 0) {
      throw std::runtime_error("a pass beside another one has other results than alone");
    }
  }

 private:
  using PassPointer = std::unique_ptr<cuda::Pass, void (*)(cuda::Pass*)>;
  static constexpr size_t kPasses = 3, kSamples = 64;
  size_t sample(size_t i) const { return (i + 1) * hidden_[0].size() / kSamples - 1; }

  cuda::Pass* begin(const Tokens& tokens, float* hidden) {
    void* const hidden_out[1] = {hidden};
    cuda::ApiForward request{};
    request.batch = tokens.batch();
    request.hidden_states = &layer_;
    request.num_hidden_states = 1;
    request.hidden_out = hidden_out;
    cuda::ApiError error{};
    cuda::Pass* pass = api->begin_forward(model_, &request, &error);
    if (pass == nullptr) raise(error);
    return pass;
  }
  void finish_oldest() {
    const std::vector<float>& hidden = hidden_[(turn_ - running_.size()) % kPasses];
    const PassPointer pass = std::move(running_.front());
    running_.pop_front();
    cuda::ApiError error{};
    check(api->finish_forward(pass.get(), &error), error);
    for (size_t i = 0; i < kSamples; ++i) {
      if (!std::isfinite(hidden[sample(i)])) throw std::runtime_error("a hidden state has not arrived");
    }
  }

  cuda::Model* model_;
  int64_t layer_;
  std::vector<float> hidden_[kPasses];  // taken in turns
  size_t turn_ = 0;                     // passes that were begun
  std::deque<PassPointer> running_;     // the oldest first
};

constexpr int64_t kMlpMegabytes = 512;  // as engines have

void bench_extract(Run& run) {
  Random random(run.seed + 1);
  struct Case {
    int64_t batch, length;
    int64_t mlp_megabytes = kMlpMegabytes;  // less stays in the second-level cache
  };
  // With 33,792 tokens, 35 and 18 MB are parts of 44 and 22 tiles of rows, of one size.
  const std::vector<Case> cases =
      run.tiny ? std::vector<Case>{{4, 8}, {2, 16}}
               : std::vector<Case>{{256, 128},     {264, 128},     {264, 128, 35}, {32, 1024}, {33, 1024},
                                   {33, 1024, 35}, {33, 1024, 18}, {66, 1024, 35}, {64, 1024}, {66, 1024}};
  const TransformerConfig config = gpt2(run, cases.back().length);
  run.row("extract", "bf16", [&] {
    const ModelPointer model = make_model(run.engine, config, random);
    for (const Case& c : cases) {
      const bool is_set = c.mlp_megabytes != kMlpMegabytes;
      if (is_set && !has_function(offsetof(cuda::Api, set_mlp_bytes))) continue;
      const std::string name = of_batch("extract-T" + std::to_string(c.length), c.batch);
      if (!run.wants(name)) continue;
      const std::string variant =
          "last hidden state to host" + (is_set ? ", " + std::to_string(c.mlp_megabytes) + " MB between" : "");
      run.row(name, variant, [&] {
        if (is_set) api->set_mlp_bytes(run.engine, c.mlp_megabytes * 1'000'000);
        std::vector<Tokens> batches;
        for (int i = 0; i < kBatches; ++i) {
          batches.push_back(make_tokens(random, c.batch, c.length, config.vocab_size, false));
        }
        const int64_t num_tokens = c.batch * c.length;
        Extraction extraction(model.get(), config.num_hidden_layers, num_tokens * config.hidden_size);
        size_t turn = 0;
        const std::vector<double> times = run.time_rounds([&] { extraction.step(batches[turn++ % kBatches]); }, 0.2);
        extraction.check_last(batches[(turn - 1) % kBatches]);
        run.lines.row(name, variant, static_cast<double>(num_tokens) / median(times) * 1e3, "tokens/s", times);
      });
      if (is_set) api->set_mlp_bytes(run.engine, kMlpMegabytes * 1'000'000);
    }
  });
}

void bench_kd(Run& run) {
  Random random(run.seed + 2);
  const int64_t length = run.tiny ? 16 : 512;
  const TransformerConfig teacher_config = gpt2(run, run.tiny ? 16 : 1024);
  const TransformerConfig config =
      run.tiny ? gpt2_config(101, length, 1, 16, 2) : gpt2_config(50257, length, 4, 256, 4);
  run.row("kd", "bf16", [&] {
    const ModelPointer teacher = make_model(run.engine, teacher_config, random);
    const ModelPointer student = make_model(run.engine, config, random);
    const TrainerPointer trainer = make_trainer(student.get());
    for (const int64_t batch : run.tiny ? std::vector<int64_t>{2} : std::vector<int64_t>{32, 33, 66}) {
      const std::string name = of_batch("kd", batch);
      if (!run.wants(name)) continue;
      run.row(name, "bf16", [&] {
        std::vector<Tokens> batches;
        for (int i = 0; i < kBatches; ++i) {
          batches.push_back(make_tokens(random, batch, length, config.vocab_size, false));
        }
        cuda::ApiTeacher signal{};
        signal.model = teacher.get();
        time_training(
            run, name, "bf16", trainer.get(), batches,
            [&](cuda::ApiStep& step) {
              step.teacher = &signal;
              step.ce = step.kd = 0.5f;
              step.temperature = 2;
            },
            static_cast<double>(batch * length), "tokens/s");
      });
    }
  });
}

void bench_sequence(Run& run) {
  Random random(run.seed + 3);
  const int64_t length = run.tiny ? 8 : 50, batch = run.tiny ? 4 : 512;
  struct Case {
    const char* name;
    int64_t items, negatives;
  };
  const Case cases[] = {{"sequence-sampled", run.tiny ? 300 : 1'000'000, run.tiny ? 32 : 8192},
                        {"sequence-full", run.tiny ? 200 : 100'000, 0}};
  for (const Case& c : cases) {
    if (!run.wants(c.name)) continue;
    run.row(c.name, "bf16", [&] {
      const TransformerConfig config =
          run.tiny ? gpt2_config(c.items, length, 1, 16, 2) : gpt2_config(c.items, length, 2, 128, 2);
      const ModelPointer model = make_model(run.engine, config, random);
      const TrainerPointer trainer = make_trainer(model.get());
      std::vector<Tokens> batches;
      for (int i = 0; i < kBatches; ++i) batches.push_back(make_tokens(random, batch, length, c.items, true));
      int64_t steps = 0;
      time_training(
          run, c.name, "bf16", trainer.get(), batches,
          [&](cuda::ApiStep& step) {
            step.sampled_negatives = c.negatives;
            if (c.negatives > 0) step.dropout_seed = ++steps;  // keys the negatives; there is no dropout
          },
          static_cast<double>(batch), "sequences/s");
    });
  }
}

/// One history, the ten best of a million items: what a student answers. p50 of single calls, the host's part included.
void bench_request(Run& run) {
  Random random(run.seed + 4);
  const int64_t items = run.tiny ? 300 : 1'000'000, length = run.tiny ? 8 : 50;
  const TransformerConfig config =
      run.tiny ? gpt2_config(items, length, 1, 16, 2) : gpt2_config(items, length, 2, 64, 1);
  std::vector<Tokens> histories;
  for (int i = 0; i < 16; ++i) histories.push_back(make_tokens(random, 1, length, items, true));
  int32_t indices[10];
  float scores[10], log_sum_exp[1];
  cuda::ApiError error{};

  auto time_calls = [&](const std::string& variant, const std::function<void(const Tokens&)>& ask) {
    std::vector<double> times;
    const int warm_up = run.tiny ? 2 : 20, calls = run.tiny ? 3 : 500;
    for (int call = 0; call < warm_up + calls; ++call) {
      const Tokens& history = histories[static_cast<size_t>(call) % histories.size()];
      const auto begin = Clock::now();
      ask(history);
      if (call >= warm_up) times.push_back(1e3 * seconds_since(begin));
      if (run.is_over() && times.size() > 10) break;
    }
    run.lines.row("request", variant, median(times) * 1e3, "us", times);
  };

  run.row("request", "model", [&] {
    const ModelPointer model = make_model(run.engine, config, random);
    for (const bool excludes : {false, true}) {
      const std::string variant = excludes ? "recommend, history excluded" : "recommend";
      run.row("request", variant, [&] {
        const std::unique_ptr<cuda::Recommender, void (*)(cuda::Recommender*)> recommender(
            api->create_recommender(model.get(), &error), api->destroy_recommender);
        if (recommender == nullptr) raise(error);
        time_calls(variant, [&](const Tokens& history) {
          int64_t num_results = 0;
          cuda::ApiRecommend request{};
          request.history = request.excluded = history.ids.data();
          request.length = length;
          request.num_excluded = excludes ? length : 0;
          request.k = 10;
          request.indices = indices;
          request.scores = scores;
          request.num_results = &num_results;
          check(api->recommend(recommender.get(), &request, &error), error);
          if (num_results != 10) throw std::runtime_error("not ten results");
        });
      });
    }
    const int32_t last = static_cast<int32_t>(length - 1);
    run.row("request", "forward, top 10", [&] {
      time_calls("forward, top 10", [&](const Tokens& history) {
        cuda::ApiForward request{};
        request.batch = history.batch();
        request.logit_rows = &last;
        request.num_logit_rows = 1;
        request.top_k = 10;
        request.top_k_indices = indices;
        request.top_k_values = scores;
        request.log_sum_exp = log_sum_exp;
        check(api->forward(model.get(), &request, &error), error);
      });
    });
  });
}

/// Full ranking of held-out items, as in a validation: the model's pass, ranks, and lists of 20 without the history.
void bench_rank(Run& run) {
  if (!has_function(offsetof(cuda::Api, rank))) return;
  Random random(run.seed + 5);
  const int64_t items = run.tiny ? 300 : 1'000'000, length = run.tiny ? 8 : 50, cases = run.tiny ? 6 : 512, k = 20;
  const TransformerConfig config =
      run.tiny ? gpt2_config(items, length, 1, 16, 2) : gpt2_config(items, length, 2, 64, 1);
  run.row("rank", "bf16", [&] {
    const ModelPointer model = make_model(run.engine, config, random);
    cuda::ApiError error{};
    const std::unique_ptr<cuda::Recommender, void (*)(cuda::Recommender*)> recommender(
        api->create_recommender(model.get(), &error), api->destroy_recommender);
    if (recommender == nullptr) raise(error);
    struct Batch {
      Tokens histories;
      std::vector<int32_t> targets, excluded, excluded_offsets{0};
    };
    std::vector<Batch> batches(kBatches);
    for (Batch& batch : batches) {
      batch.histories = make_tokens(random, cases, length, items, true);
      for (int64_t s = 0; s < cases; ++s) {
        const auto first = batch.histories.ids.begin() + s * length;
        std::set<int32_t> history(first, first + length);
        batch.targets.push_back(random.below(items));
        history.erase(batch.targets.back());
        batch.excluded.insert(batch.excluded.end(), history.begin(), history.end());
        batch.excluded_offsets.push_back(static_cast<int32_t>(batch.excluded.size()));
      }
    }
    std::vector<int32_t> ranks(static_cast<size_t>(cases)), indices(static_cast<size_t>(cases * k));
    std::vector<float> scores(indices.size());
    size_t turn = 0;
    const std::vector<double> times = run.time_rounds(
        [&] {
          const Batch& batch = batches[turn++ % kBatches];
          std::fill(ranks.begin(), ranks.end(), 0);
          cuda::ApiRank request{};
          request.batch = batch.histories.batch();
          request.targets = batch.targets.data();
          request.excluded_items = batch.excluded.data();
          request.excluded_offsets = batch.excluded_offsets.data();
          request.top_k = k;
          request.ranks = ranks.data();
          request.indices = indices.data();
          request.scores = scores.data();
          check(api->rank(recommender.get(), &request, &error), error);
          for (const int32_t rank : ranks) {
            if (rank < 1 || rank > items) throw std::runtime_error("a rank is none");
          }
        },
        0.2);
    run.lines.row("rank", "bf16", static_cast<double>(cases) / median(times) * 1e3, "users/s", times);
  });
}

}  // namespace

int main(int count, char** values) {
  Options options(count, values);
  const bool tiny = options.has("--tiny");
  JsonLines errors(nullptr);
  open_library(options.get("--library", std::getenv("LIMBECK_CUDA_LIBRARY")));
  if (api == nullptr) {
    errors.error("library", "dlopen", library_problem == nullptr ? "no --library" : library_problem);
    return 1;
  }
  cuda::ApiRuntime runtime{};
  api->describe_runtime(&runtime);
  std::printf("runtime %d, driver %d, devices %d, cuBLASLt %s %s\n", runtime.runtime_version, runtime.driver_version,
              runtime.num_devices, runtime.cublas, runtime.problem);
  cuda::ApiError error{};
  const EnginePointer engine(
      api->create_engine(std::atoi(options.get("--device", "0")), cuda::ApiPrecision::kBFloat16, &error),
      api->destroy_engine);
  if (engine == nullptr) {
    errors.error("engine", "create", std::string(error.code) + ": " + error.message);
    return 1;
  }
  if (options.has("--tune")) api->set_tuning(engine.get(), 1);
  Run run{options,
          JsonLines(options.get("--out", nullptr)),
          tiny,
          std::atoi(options.get("--rounds", tiny ? "2" : "7")),
          std::atof(options.get("--max-seconds", "60")),
          static_cast<uint64_t>(std::atoll(options.get("--seed", "1"))),
          engine.get()};
  const std::pair<const char*, void (*)(Run&)> parts[] = {{"train", bench_train},     {"extract", bench_extract},
                                                          {"kd", bench_kd},           {"sequence", bench_sequence},
                                                          {"request", bench_request}, {"rank", bench_rank}};
  for (const auto& [name, body] : parts) {
    if (!options.wants(name)) continue;
    run.part_begin = Clock::now();
    body(run);
  }
  return 0;
}
