// Single operations on the GPU, and the two ceilings (matrix products, memory) that all rows are held against:
//   bench_cuda_ops [--parts ceilings,attention,ops,products,loss,topk,encoder] [--out LINES] [--rounds 7]
//                  [--max-seconds 60] [--device 0] [--tiny] [--tune] [--once (one round of one launch)]
// Times are those of device events around several launches, inputs random and larger than the caches.

#include <chrono>
#include <cstdlib>
#include <functional>
#include <set>
#include <stdexcept>
#include <vector>

#include "cuda/attention.h"
#include "cuda/elementwise.h"
#include "cuda/embedding.h"
#include "cuda/engine.h"
#include "cuda/gemm.h"
#include "cuda/launch.h"
#include "cuda/loss_head.h"
#include "cuda/norm.h"
#include "cuda/optimizer.h"
#include "cuda/sequence_encoder.h"
#include "cuda/top_k_items.h"
#include "json_lines.h"

namespace limbeck::cuda::bench {

using namespace limbeck_bench;
using Clock = std::chrono::steady_clock;

__device__ __forceinline__ uint32_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(x >> 32);
}

/// x[i] = uniform in center ± width.
template <typename T>
__global__ void fill_uniform(T* x, int64_t count, float center, float width, uint64_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float unit = static_cast<float>(scramble((static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull + seed)) *
                       0x1p-31f;  // [0, 2)
    x[i] = from_float<T>(center + width * (unit - 1.0f));
  }
}

__global__ void fill_ids(int32_t* x, int64_t count, int64_t below, uint64_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    x[i] = static_cast<int32_t>(scramble((static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ull + seed) %
                                static_cast<uint64_t>(below));
  }
}

/// Device memory of a row, filled.
class Fill {
 public:
  explicit Fill(Context& context) : context_(context) {}

  template <typename T>
  T* uniform(int64_t count, float width = 1, float center = 0) {
    T* x = context_.arena.allocate<T>(count);
    launch(context_, fill_uniform<T>, grid(count), dim3(256), 0, x, count, center, width, ++seed_ << 40);
    return x;
  }
  int32_t* ids(int64_t count, int64_t below) {
    int32_t* x = context_.arena.allocate<int32_t>(count);
    launch(context_, fill_ids, grid(count), dim3(256), 0, x, count, below, ++seed_ << 40);
    return x;
  }
  template <typename T>
  T* zeros(int64_t count) {
    T* x = context_.arena.allocate<T>(count);
    set_zero(context_, x, count);
    return x;
  }

 private:
  static dim3 grid(int64_t count) {
    return dim3(static_cast<uint32_t>(std::max<int64_t>(1, std::min<int64_t>(4096, count / 1024))));
  }
  Context& context_;
  uint64_t seed_ = 0;
};

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

struct Run {
  Options options;
  JsonLines lines;
  bool tiny;
  int rounds;
  double max_seconds;
  Engine& engine;
  Clock::time_point part_begin = Clock::now();

  bool is_over() const { return std::chrono::duration<double>(Clock::now() - part_begin).count() > max_seconds; }

  /// `prepare` makes the inputs and returns the operation; work is what one operation does (bytes or operations). With
  /// as_graph, launches are captured once and replayed.
  void row(const std::string& name, const std::string& variant, const char* unit, double work,
           const std::function<std::function<void()>(Context&)>& prepare, bool as_graph = false) {
    if (is_over()) return lines.error(name, variant, "left out: the part's time was over");
    try {
      std::vector<double> times;
      engine.run([&](Context& context) {
        const std::function<void()> operation = prepare(context);
        operation();
        if (!context.is_dry) times = time(context, operation, as_graph);
      });
      const double milliseconds = median(times);
      const std::string u = unit;
      const double value = u == "GB/s"      ? work / milliseconds / 1e6
                           : u == "TFLOP/s" ? work / milliseconds / 1e9
                           : u == "us"      ? milliseconds * 1e3
                                            : milliseconds;
      lines.row(name, variant, value, unit, times);
    } catch (const std::exception& error) {
      lines.error(name, variant, error.what());
    }
  }

 private:
  std::vector<double> time(Context& context, const std::function<void()>& operation, bool as_graph) {
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin));
    check(cudaEventCreate(&end));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    if (as_graph) {
      operation();  // what allocates or tunes has done so
      check(cudaStreamSynchronize(context.stream));
      check(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
      operation();
      check(cudaStreamEndCapture(context.stream, &graph));
      check(cudaGraphInstantiate(&replay, graph, 0));
    }
    auto measure = [&](int steps) {
      check(cudaEventRecord(begin, context.stream));
      for (int i = 0; i < steps; ++i) {
        if (as_graph) {
          check(cudaGraphLaunch(replay, context.stream));
        } else {
          operation();
        }
      }
      check(cudaEventRecord(end, context.stream));
      check(cudaEventSynchronize(end));
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin, end));
      return static_cast<double>(milliseconds) / steps;
    };
    std::vector<double> times;
    if (options.has("--once")) {
      times.push_back(measure(1));
    } else {
      measure(1);
      const double estimate = std::max(1e-3, measure(tiny ? 1 : 3));
      const int steps = tiny ? 1 : std::max(2, std::min(200, static_cast<int>(30.0 / estimate)));
      for (int round = 0; round < rounds; ++round) times.push_back(measure(steps));
    }
    if (replay != nullptr) cudaGraphExecDestroy(replay);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return times;
  }
};

void bench_ceilings(Run& run) {
  const int64_t n = run.tiny ? 64 : 8192;
  const GemmShape shape{n, n, n, false, true, n, n, n};
  const double flops = 2.0 * n * n * n;
  run.row("ceiling-gemm-bf16", "8192^3, x·Wᵀ", "TFLOP/s", flops, [&](Context& context) {
    Fill fill(context);
    const bf16 *a = fill.uniform<bf16>(n * n), *b = fill.uniform<bf16>(n * n);
    bf16* c = fill.uniform<bf16>(n * n);
    return [=, &context] { gemm<bf16, bf16>(context, shape, a, b, nullptr, nullptr, c); };
  });
  run.row("ceiling-gemm-fp32", "8192^3, x·Wᵀ", "TFLOP/s", flops, [&](Context& context) {
    Fill fill(context);
    const float *a = fill.uniform<float>(n * n), *b = fill.uniform<float>(n * n);
    float* c = fill.uniform<float>(n * n);
    return [=, &context] { gemm<float, float>(context, shape, a, b, nullptr, nullptr, c); };
  });
  const int64_t count = run.tiny ? 1 << 12 : int64_t{1} << 30;
  run.row("ceiling-copy", "device to device", "GB/s", 8.0 * count, [&](Context& context) {
    Fill fill(context);
    const float* source = fill.uniform<float>(count);
    float* target = fill.uniform<float>(count);
    return [=, &context] { copy_on_device(context, target, source, count); };
  });
}

void bench_attention(Run& run) {
  struct Case {
    int64_t length, sequences, heads;
  };
  const int64_t head_dim = run.tiny ? 16 : 64;
  const std::vector<Case> cases =
      run.tiny ? std::vector<Case>{{16, 4, 2}, {32, 2, 2}}
               : std::vector<Case>{{50, 512, 2}, {128, 128, 12}, {1024, 16, 12}, {2048, 8, 12}, {4096, 4, 12}};
  for (const auto& [length, sequences, heads] : cases) {
    const int64_t total = sequences * length, width = heads * head_dim;
    // Half of the square, as is usual for causal attention; the backward pass counts 2.5 forward ones.
    const double flops = 2.0 * sequences * heads * length * length * head_dim;
    std::vector<int32_t> offsets;
    std::vector<int64_t> map_offsets;
    for (int64_t s = 0; s <= sequences; ++s) {
      offsets.push_back(static_cast<int32_t>(s * length));
      map_offsets.push_back(s * length * length);
    }
    auto prepare = [&, length = length, sequences = sequences, heads = heads](
                       Context& context, bool with_backward) -> std::function<void()> {
      Fill fill(context);
      int32_t* device_offsets = context.arena.allocate<int32_t>(sequences + 1);
      int64_t* device_map_offsets = context.arena.allocate<int64_t>(sequences + 1);
      copy_to_device(context, device_offsets, offsets.data(), sequences + 1);
      copy_to_device(context, device_map_offsets, map_offsets.data(), sequences + 1);
      const AttentionShape shape{total, sequences, length,   device_offsets, device_map_offsets,
                                 heads, heads,     head_dim, true,           0};
      const bf16 *qkv = fill.uniform<bf16>(total * 3 * width), *d_y = fill.uniform<bf16>(total * width);
      bf16 *y = fill.uniform<bf16>(total * width), *d_qkv = fill.uniform<bf16>(total * 3 * width);
      float* lse = fill.uniform<float>(total * heads);
      return [=, &context] {
        attention_forward<bf16>(context, shape, qkv, y, lse, {});
        if (with_backward) {
          attention_backward<bf16>(context, shape, qkv, y, lse, d_y, d_qkv, nullptr, 0, {});
        }
      };
    };
    const std::string name = "attention-T" + std::to_string(length);
    run.row(name + "-forward", "bf16", "TFLOP/s", flops, [&](Context& context) { return prepare(context, false); });
    run.row(name + "-both", "bf16", "TFLOP/s", 3.5 * flops, [&](Context& context) { return prepare(context, true); });
  }

  // Gradients alone, of what fills the GPU: a step of GPT-2 124M, of its student, and of histories of 50.
  struct Batch {
    int64_t sequences, length, heads;
  };
  for (const Batch& batch : {Batch{64, 1024, 12}, Batch{32, 512, 4}, Batch{512, 50, 2}}) {
    const int64_t sequences = run.tiny ? 2 : batch.sequences, length = run.tiny ? 16 : batch.length;
    const int64_t tokens = sequences * length, columns = batch.heads * head_dim;
    std::vector<int32_t> offsets;
    for (int64_t s = 0; s <= sequences; ++s) offsets.push_back(static_cast<int32_t>(s * length));
    const std::string name = "attention-backward-" + std::to_string(batch.sequences) + "x" +
                             std::to_string(batch.length) + "x" + std::to_string(batch.heads);
    run.row(name, "bf16", "us", 0, [&](Context& context) -> std::function<void()> {
      Fill fill(context);
      int32_t* device_offsets = context.arena.allocate<int32_t>(sequences + 1);
      copy_to_device(context, device_offsets, offsets.data(), sequences + 1);
      const AttentionShape shape{tokens,      sequences,   length,   device_offsets, nullptr,
                                 batch.heads, batch.heads, head_dim, true,           0};
      const bf16 *qkv = fill.uniform<bf16>(tokens * 3 * columns), *d_y = fill.uniform<bf16>(tokens * columns);
      bf16 *y = fill.uniform<bf16>(tokens * columns), *d_qkv = fill.uniform<bf16>(tokens * 3 * columns);
      float* lse = fill.uniform<float>(tokens * batch.heads);
      attention_forward<bf16>(context, shape, qkv, y, lse, {});
      return [=, &context] { attention_backward<bf16>(context, shape, qkv, y, lse, d_y, d_qkv, nullptr, 0, {}); };
    });
  }
}

/// What passes over memory: the share of a training step that no matrix unit helps with.
void bench_ops(Run& run) {
  const int64_t rows = run.tiny ? 64 : 65536, width = run.tiny ? 32 : 768, vocab = run.tiny ? 100 : 50257;
  const int64_t size = rows * width;
  run.row("layer-norm-forward", "bf16", "GB/s", 4.0 * size, [&](Context& context) {
    Fill fill(context);
    const bf16* x = fill.uniform<bf16>(size);
    const float *gamma = fill.uniform<float>(width), *beta = fill.uniform<float>(width);
    bf16* y = fill.uniform<bf16>(size);
    float *mean = fill.uniform<float>(rows), *rstd = fill.uniform<float>(rows);
    return [=, &context] { layer_norm_forward<bf16>(context, x, gamma, beta, y, mean, rstd, rows, width, 1e-5f); };
  });
  run.row("layer-norm-backward", "bf16, accumulating", "GB/s", 8.0 * size, [&](Context& context) {
    Fill fill(context);
    const bf16 *x = fill.uniform<bf16>(size), *d_y = fill.uniform<bf16>(size);
    const float *gamma = fill.uniform<float>(width), *mean = fill.uniform<float>(rows, 0.1f);
    const float* rstd = fill.uniform<float>(rows, 0.1f, 1);
    bf16* d_x = fill.uniform<bf16>(size, 0.01f);
    float *d_gamma = fill.zeros<float>(width), *d_beta = fill.zeros<float>(width);
    return [=, &context] {
      layer_norm_backward<bf16>(context, x, gamma, mean, rstd, d_y, d_x, d_gamma, d_beta, rows, width, true);
    };
  });
  run.row("gelu-forward", "bf16", "GB/s", 4.0 * 4 * size, [&](Context& context) {
    Fill fill(context);
    const bf16* x = fill.uniform<bf16>(4 * size);
    bf16* y = fill.uniform<bf16>(4 * size);
    return [=, &context] { activation_forward<bf16>(context, Activation::kGeluTanh, x, y, rows, 4 * width); };
  });
  run.row("gelu-backward", "bf16, with the bias", "GB/s", 6.0 * 4 * size, [&](Context& context) {
    Fill fill(context);
    const bf16 *x = fill.uniform<bf16>(4 * size), *d_y = fill.uniform<bf16>(4 * size);
    bf16* d_x = fill.uniform<bf16>(4 * size);
    float* d_bias = fill.zeros<float>(4 * width);
    return [=, &context] {
      activation_backward<bf16>(context, Activation::kGeluTanh, x, d_y, d_x, d_bias, rows, 4 * width);
    };
  });
  run.row("row-sums", "bf16, 2304 columns", "GB/s", 2.0 * 3 * size, [&](Context& context) {
    Fill fill(context);
    const bf16* x = fill.uniform<bf16>(3 * size);
    float* out = fill.zeros<float>(3 * width);
    return [=, &context] { add_row_sums<bf16>(context, x, 3 * width, rows, 3 * width, out); };
  });
  run.row("embedding-forward", "bf16", "GB/s", 4.0 * size, [&](Context& context) {
    Fill fill(context);
    const int32_t *ids = fill.ids(rows, vocab), *positions = fill.ids(rows, run.tiny ? 16 : 1024);
    const bf16 *words = fill.uniform<bf16>(vocab * width), *table = fill.uniform<bf16>(1024 * width);
    bf16* y = fill.uniform<bf16>(size);
    return [=, &context] {
      embedding_forward<bf16>(context, ids, words, positions, table, nullptr, nullptr, y, rows, width);
    };
  });
  Random random(1);
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  for (int32_t& id : ids) id = random.below(vocab);
  const EmbeddingOrder order = EmbeddingOrder::of(ids.data(), rows, vocab);
  const size_t num_ids = std::set<int32_t>(ids.begin(), ids.end()).size();
  run.row("embedding-backward", "bf16", "GB/s", 2.0 * size + 8.0 * static_cast<double>(num_ids) * width,
          [&](Context& context) {
            Fill fill(context);
            DeviceEmbeddingOrder device_order = allocate_embedding_order(context, rows, vocab);
            upload(context, order, device_order);
            const bf16* d_y = fill.uniform<bf16>(size);
            float* d_table = fill.zeros<float>(vocab * width);
            return [=, &context] { embedding_backward<bf16>(context, device_order, d_y, d_table, width); };
          });

  const int64_t parameters = run.tiny ? 4096 : 124'439'808;
  for (const bool with_copy : {false, true}) {
    run.row("interpolate", with_copy ? "with the bf16 copy" : "fp32", "GB/s", (with_copy ? 14.0 : 12.0) * parameters,
            [&](Context& context) {
              Fill fill(context);
              float* values = fill.uniform<float>(parameters);
              const float* target = fill.uniform<float>(parameters);
              bf16* compute = with_copy ? fill.uniform<bf16>(parameters) : nullptr;
              return [=, &context] { interpolate(context, values, target, nullptr, compute, parameters, 1e-3f); };
            });
  }
  // The tensors of GPT-2 124M: a table, positions, and twelve blocks.
  std::vector<int64_t> counts = {vocab * width, 1024 * width};
  for (int layer = 0; layer < (run.tiny ? 1 : 12); ++layer) {
    for (int64_t count : {width, width, 3 * width * width, 3 * width, width * width, width, width, width,
                          4 * width * width, 4 * width, 4 * width * width, width}) {
      counts.push_back(count);
    }
  }
  double total = 0;
  for (int64_t count : counts) total += static_cast<double>(count);
  auto prepare_update = [&](Context& context, bool norm_alone) -> std::function<void()> {
    Fill fill(context);
    std::vector<OptimizerTensor> tensors;
    for (int64_t count : counts) {
      tensors.push_back({fill.uniform<float>(count, 0.02f), fill.uniform<float>(count, 1e-3f),
                         fill.uniform<float>(count, 1e-3f), fill.uniform<float>(count, 1e-6f, 2e-6f),
                         fill.uniform<bf16>(count), count, 0.1f});
    }
    const UpdatePlan plan = plan_update(context, tensors);
    static StepScalars host_scalars{1e-4f, 1, 0.1f, 0.05f, 0};
    StepScalars* scalars = context.arena.allocate<StepScalars>(1);
    copy_to_device(context, scalars, &host_scalars, 1);
    double *squares = fill.zeros<double>(1), *loss = fill.zeros<double>(1);
    return [=, &context] {
      if (norm_alone) {
        squared_norm(context, plan, squares);
      } else {
        adamw(context, plan, {0.9f, 0.95f, 1e-8f}, scalars, squares, loss);
      }
    };
  };
  run.row("adamw", "124M, with the bf16 copy", "GB/s", 30.0 * total,
          [&](Context& context) { return prepare_update(context, false); });
  run.row("squared-norm", "124M", "GB/s", 4.0 * total, [&](Context& context) { return prepare_update(context, true); });
}

/// The products of a GPT-2 124M step at 65,536 tokens.
void bench_products(Run& run) {
  const int64_t rows = run.tiny ? 64 : 65536, width = run.tiny ? 32 : 768;
  const int64_t sizes[][2] = {{width, 3 * width}, {width, width}, {width, 4 * width}, {4 * width, width}};
  for (const auto& [in, out] : sizes) {
    const std::string shape = std::to_string(in) + "-" + std::to_string(out);
    const double flops = 2.0 * rows * in * out;
    run.row("linear-forward-" + shape, "bf16", "TFLOP/s", flops, [&, in = in, out = out](Context& context) {
      Fill fill(context);
      const bf16 *x = fill.uniform<bf16>(rows * in), *weight = fill.uniform<bf16>(out * in, 0.05f);
      const bf16* bias = fill.uniform<bf16>(out);
      bf16* y = fill.uniform<bf16>(rows * out);
      return [=, &context] { linear_forward<bf16>(context, x, weight, bias, nullptr, y, rows, in, out); };
    });
    run.row("linear-backward-" + shape, "bf16, d_x and d_weight", "TFLOP/s", 2 * flops,
            [&, in = in, out = out](Context& context) {
              Fill fill(context);
              const bf16 *x = fill.uniform<bf16>(rows * in), *weight = fill.uniform<bf16>(out * in, 0.05f);
              const bf16* d_y = fill.uniform<bf16>(rows * out);
              bf16* d_x = fill.uniform<bf16>(rows * in);
              float* d_weight = fill.uniform<float>(out * in);
              return [=, &context] {
                linear_backward<bf16>(context, x, weight, d_y, d_x, d_weight, rows, in, out, false);
              };
            });
  }
}

void bench_loss(Run& run) {
  struct Case {
    const char *name, *variant;
    int64_t rows, vocab, width, teacher_width;
  };
  const Case cases[] = {{"loss-head", "65,536 x 50,257, d 768", 65536, 50257, 768, 0},
                        {"loss-head-kd", "16,384 x 50,257, d 256, teacher d 768", 16384, 50257, 256, 768},
                        {"loss-head-items", "25,600 x 100,000, d 128", 25600, 100000, 128, 0}};
  for (Case c : cases) {
    if (run.tiny) {
      c.rows = 64;
      c.vocab = 100;
      c.width = 32;
      c.teacher_width = c.teacher_width == 0 ? 0 : 64;
    }
    const int64_t padded = (c.vocab + 63) / 64 * 64;
    // The logits, and the gradients of rows and table; a teacher's logits besides.
    const double flops = 2.0 * c.rows * c.vocab * (3.0 * c.width + c.teacher_width);
    run.row(c.name, c.variant, "TFLOP/s", flops, [&](Context& context) {
      Fill fill(context);
      const bf16 *hidden = fill.uniform<bf16>(c.rows * c.width), *weight = fill.uniform<bf16>(padded * c.width, 0.05f);
      const OutputTable<bf16> table{weight, nullptr, c.vocab, padded};
      const int32_t* labels = fill.ids(c.rows, c.vocab);
      TeacherLogits<bf16> teacher;
      LossHeadOptions options;
      if (c.teacher_width > 0) {
        teacher.hidden = fill.uniform<bf16>(c.rows * c.teacher_width);
        teacher.table = fill.uniform<bf16>(padded * c.teacher_width, 0.05f);
        teacher.hidden_size = c.teacher_width;
        options.ce_weight = options.kd_weight = 0.5f;
        options.temperature = 2;
      }
      bf16* d_hidden = fill.uniform<bf16>(c.rows * c.width);
      float* d_table = fill.uniform<float>(padded * c.width);
      double* sums = fill.zeros<double>(2);
      const float scale = 1.0f / static_cast<float>(c.rows);
      return [=, &context] {
        loss_head<bf16>(context, hidden, table, labels, teacher, options, scale, nullptr, d_hidden, d_table, false,
                        nullptr, sums, c.rows, c.width);
      };
    });
  }
}

/// The first half of a request; top-k is the second.
void bench_encoder(Run& run) {
  const int width = 64, heads = 2, intermediate = 4 * width, layers = 2;
  for (const int length : {1, 16, 50, 64}) {
    run.row(
        "encode-sequence", "length " + std::to_string(length) + ", graph", "us", 0,
        [&](Context& context) {
          Fill fill(context);
          SequenceEncoder encoder{};
          encoder.num_layers = layers;
          encoder.hidden_size = width;
          encoder.num_heads = heads;
          encoder.head_dim = width / heads;
          encoder.intermediate_size = intermediate;
          encoder.norm_eps = 1e-5f;
          encoder.words = fill.uniform<bf16>(1000 * width);
          encoder.positions = fill.uniform<bf16>(64 * width);
          encoder.outer_norm_weight = fill.uniform<float>(width);
          encoder.outer_norm_bias = fill.uniform<float>(width);
          for (SequenceEncoder::Layer* layer = encoder.layers; layer < encoder.layers + layers; ++layer) {
            const auto norm = [&] { return fill.uniform<float>(width); };
            const auto weight = [&](int count) { return fill.uniform<bf16>(count, 0.1f); };
            *layer = {norm(),
                      norm(),
                      norm(),
                      norm(),
                      weight(3 * width * width),
                      weight(3 * width),
                      weight(width * width),
                      weight(width),
                      weight(intermediate * width),
                      weight(intermediate),
                      weight(width * intermediate),
                      weight(width)};
          }
          char* packed = context.arena.allocate<char>(packed_encoder_bytes(encoder));
          pack_encoder(context, encoder, packed);
          int32_t* inputs = context.arena.allocate<int32_t>(65);  // ids [64], length
          bf16* query = context.arena.allocate<bf16>(width);
          std::vector<int32_t> host_inputs(65, 7);
          host_inputs[64] = length;
          copy_to_device(context, inputs, host_inputs.data(), 65);
          synchronize(context);
          return [=, &context] { encode_sequence(context, encoder, packed, 64, inputs + 64, inputs, query); };
        },
        true);
  }
}

void bench_top_k(Run& run) {
  const int64_t items = run.tiny ? 1000 : 1'000'000, width = run.tiny ? 16 : 64;
  struct Case {
    const char* variant;
    bool is_quantised, as_graph;
  };
  for (const int64_t k : {10, 16, 64, 100}) {
    for (const Case& c :
         {Case{"graph", true, true}, Case{"items alone, graph", false, true}, Case{"launches", true, false}}) {
      run.row(
          "topk-" + std::to_string(k), c.variant, "us", 0,
          [&](Context& context) {
            Fill fill(context);
            // Two tables in turns would not change much: one is more than the second-level cache holds.
            const bf16 *queries = fill.uniform<bf16>(width), *table = fill.uniform<bf16>(items * width);
            int8_t* levels = context.arena.allocate<int8_t>(items * QuantisedItems::row_bytes(width));
            float* scales = context.arena.allocate<float>((items + 3) / 4 * 4);
            const QuantisedItems quantised = quantise_items<bf16>(context, table, items, width, levels, scales);
            const QuantisedItems given = c.is_quantised ? quantised : QuantisedItems();
            int32_t* indices = context.arena.allocate<int32_t>(k);
            float* scores = context.arena.allocate<float>(k);
            unsigned* num_finished = fill.zeros<unsigned>(1);
            return [=, &context] {
              top_k_items<bf16>(context, queries, table, nullptr, 1, items, width, k, indices, scores, 0,
                                {nullptr, nullptr, num_finished}, given);
            };
          },
          c.as_graph);
    }
  }
}

}  // namespace limbeck::cuda::bench

int main(int count, char** values) {
  using namespace limbeck::cuda::bench;
  using limbeck::cuda::ApiPrecision;
  using limbeck::cuda::Engine;
  Options options(count, values);
  const bool tiny = options.has("--tiny");
  try {
    Engine engine(std::atoi(options.get("--device", "0")), ApiPrecision::kBFloat16);
    engine.blas->set_tuning(options.has("--tune"));
    Run run{options,
            JsonLines(options.get("--out", nullptr)),
            tiny,
            std::atoi(options.get("--rounds", tiny ? "2" : "7")),
            std::atof(options.get("--max-seconds", "60")),
            engine};
    const std::pair<const char*, void (*)(Run&)> parts[] = {
        {"ceilings", bench_ceilings}, {"attention", bench_attention}, {"ops", bench_ops},
        {"products", bench_products}, {"loss", bench_loss},           {"topk", bench_top_k},
        {"encoder", bench_encoder}};
    for (const auto& [name, body] : parts) {
      if (!options.wants(name)) continue;
      run.part_begin = Clock::now();
      body(run);
    }
  } catch (const std::exception& error) {
    JsonLines(nullptr).error("engine", "create", error.what());
    return 1;
  }
  return 0;
}
