#include <algorithm>

#include "cuda/launch.h"
#include "cuda/optimizer.h"
#include "cuda/packs.h"
#include "cuda/reduce.h"
#include "cuda/rows.h"

namespace limbeck::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFloats = 4;  // a thread and pass

constexpr int64_t kChunk = UpdatePlan::kChunkFloats;

/// The chunk of this block: `count` elements of a tensor from `first` on. A chunk begins at a multiple of kChunkFloats,
/// so that its alignment is that of the tensor.
struct Chunk {
  OptimizerTensor tensor;
  int64_t first;
  int count;

  __device__ __forceinline__ Chunk(const OptimizerTensor* tensors, const int64_t* chunks) {
    tensor = tensors[chunks[2 * static_cast<int64_t>(blockIdx.x)]];
    first = chunks[2 * static_cast<int64_t>(blockIdx.x) + 1];
    const int64_t left = tensor.count - first;
    count = static_cast<int>(left < kChunk ? left : kChunk);
  }
};

__device__ __forceinline__ bool is_device_aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

/// What a body does to the whole chunk, kFloats elements at a time where `is_packed`. It is a plain struct with
///
///   template <int kCount> struct Loaded { … };                      what it reads for kCount elements
///   template <int kCount> void load(int i, Loaded<kCount>&) const;  all but gradients, which may depend on what is
///   read template <int kCount> void load_gradients(int i, Loaded<kCount>&) const; template <int kCount> void store(int
///   i, Loaded<kCount>&) const;
template <typename Body>
__device__ __forceinline__ void for_chunk(const Body& body, int count, bool is_packed) {
  constexpr int kUnroll = 2, kStride = kThreads * kFloats;
  const int packed_count = is_packed ? count / kFloats * kFloats : 0;
  for (int first = static_cast<int>(threadIdx.x) * kFloats; first < packed_count; first += kUnroll * kStride) {
    typename Body::template Loaded<kFloats> loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * kStride < packed_count) body.template load<kFloats>(first + u * kStride, loaded[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * kStride < packed_count) body.template load_gradients<kFloats>(first + u * kStride, loaded[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * kStride < packed_count) body.template store<kFloats>(first + u * kStride, loaded[u]);
    }
  }
  for (int i = packed_count + static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    typename Body::template Loaded<1> loaded;
    body.template load<1>(i, loaded);
    body.template load_gradients<1>(i, loaded);
    body.template store<1>(i, loaded);
  }
}

/// Whether the gradient of an element may be anything but zero: see OptimizerTensor.
struct TouchedElements {
  const uint8_t* rows;
  uint32_t first, row_size;

  __device__ __forceinline__ TouchedElements(const Chunk& chunk)
      : rows(chunk.tensor.touched_rows),
        first(static_cast<uint32_t>(chunk.first)),
        row_size(static_cast<uint32_t>(chunk.tensor.row_size)) {}
  /// Of the elements i … i + 3 of the chunk, i a multiple of 4; or of one.
  __device__ __forceinline__ bool at(int i) const {
    return rows == nullptr || rows[(first + static_cast<uint32_t>(i)) / row_size] != 0;
  }
};

/// Gradients, or zeros where none are.
template <int kCount>
__device__ __forceinline__ void load_touched(const float* gradients, bool is_touched, float (&g)[kCount]) {
  if (is_touched) {
    load<kStreaming>(gradients, g);
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) g[j] = 0;
  }
}

// ---- Sums of squares: a double for each chunk, then these in a fixed order.

/// Adds up squares: four in float, where nothing is lost that the floats had, then in double.
template <int kCount>
__device__ __forceinline__ void add_squares(const float (&x)[kCount], double& sum) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) squares = fmaf(x[i], x[i], squares);
  sum += static_cast<double>(squares);
}

__global__ void __launch_bounds__(kThreads)
    square_chunks(const OptimizerTensor* tensors, const int64_t* chunks, double* sums) {
  __shared__ double shared[kThreads / 32];
  const Chunk chunk(tensors, chunks);
  const TouchedElements touched(chunk);
  const float* x = chunk.tensor.gradients + chunk.first;
  constexpr int kUnroll = 4;
  double sum = 0;
  const int packed_count = is_device_aligned(x, 16) ? chunk.count / kFloats * kFloats : 0;
  for (int first = static_cast<int>(threadIdx.x) * kFloats; first < packed_count;
       first += kThreads * kFloats * kUnroll) {
    float values[kUnroll][kFloats];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * kThreads * kFloats;
      if (i >= packed_count) break;
      if (touched.at(i)) {
        load(x + i, values[u]);
      } else {
#pragma unroll
        for (int j = 0; j < kFloats; ++j) values[u][j] = 0;
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (first + u * kThreads * kFloats < packed_count) add_squares(values[u], sum);
    }
  }
  for (int i = packed_count + static_cast<int>(threadIdx.x); i < chunk.count; i += kThreads) {
    const float value[1] = {touched.at(i) ? x[i] : 0.0f};
    add_squares(value, sum);
  }
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

constexpr int kFinishThreads = 1024;

/// One block. out [1] = Σ sums, or += with accumulate.
__global__ void __launch_bounds__(kFinishThreads)
    finish_sums(const double* sums, int64_t count, double* out, bool accumulate) {
  __shared__ double shared[kFinishThreads / 32];
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum += sums[i];
  sum = block_sum<kFinishThreads>(sum, shared);
  if (threadIdx.x == 0) *out = accumulate ? *out + sum : sum;
}

// ---- Updates.

/// What the whole step shares.
struct Step {
  bool is_finite;
  float grad_scale;

  __device__ __forceinline__ Step(const StepScalars& scalars, double squares, double loss) {
    is_finite = squares - squares == 0 && loss - loss == 0;
    const float norm = sqrtf(static_cast<float>(squares));
    grad_scale = scalars.max_grad_norm > 0 && norm > scalars.max_grad_norm ? scalars.max_grad_norm / norm : 1.0f;
  }
};

/// The rounded copy is read soon, so it stays in the caches where it can; the rest is not needed again in this step.
template <int kCount>
__device__ __forceinline__ void store_parameters(float* values, bf16* compute, int i, const float (&x)[kCount]) {
  store<kStreaming>(values + i, x);
  if (compute != nullptr) store(compute + i, x);
}

struct AdamWUpdate {
  __device__ __forceinline__ explicit AdamWUpdate(const Chunk& chunk) : touched(chunk) {}

  TouchedElements touched;
  float *values, *first, *second;
  const float* gradients;
  bf16* compute;
  AdamWConstants constants;
  float grad_scale, step_size, inverse_root_correction, decay;

  template <int kCount>
  struct Loaded {
    float x[kCount], g[kCount], m[kCount], v[kCount];
    bool is_touched;
  };
  template <int kCount>
  __device__ __forceinline__ void load(int i, Loaded<kCount>& loaded) const {
    loaded.is_touched = touched.at(i);
    cuda::load<kStreaming>(values + i, loaded.x);
    cuda::load<kStreaming>(first + i, loaded.m);
    cuda::load<kStreaming>(second + i, loaded.v);
  }
  template <int kCount>
  __device__ __forceinline__ void load_gradients(int i, Loaded<kCount>& loaded) const {
    load_touched(gradients + i, loaded.is_touched, loaded.g);
  }
  template <int kCount>
  __device__ __forceinline__ void store(int i, Loaded<kCount>& loaded) const {
    auto& [x, g, m, v, is_touched] = loaded;
    // Rows that never had a gradient: moments stay zeros (of the positive sign), and only decay is left to do.
    uint32_t moment_bits = 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) moment_bits |= __float_as_uint(m[j]) | __float_as_uint(v[j]);
    if (!is_touched && moment_bits == 0 && constants.epsilon > 0) {
      if (decay == 1.0f) return;
#pragma unroll
      for (int j = 0; j < kCount; ++j) x[j] *= decay;
      return store_parameters(values, compute, i, x);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float gradient = g[j] * grad_scale;
      m[j] = m[j] * constants.beta1 + gradient * (1.0f - constants.beta1);
      v[j] = v[j] * constants.beta2 + gradient * gradient * (1.0f - constants.beta2);
      const float denominator = sqrtf(v[j]) * inverse_root_correction + constants.epsilon;
      x[j] = x[j] * decay - step_size * m[j] / denominator;
    }
    cuda::store<kStreaming>(first + i, m);
    cuda::store<kStreaming>(second + i, v);
    store_parameters(values, compute, i, x);
  }
};

__global__ void __launch_bounds__(kThreads)
    adamw_chunks(const OptimizerTensor* tensors, const int64_t* chunks, AdamWConstants constants,
                 const StepScalars* step_scalars, const double* squares, const double* loss) {
  const StepScalars scalars = *step_scalars;
  const Step step(scalars, *squares, *loss);
  if (!step.is_finite) return;
  const Chunk chunk(tensors, chunks);
  const OptimizerTensor& tensor = chunk.tensor;
  AdamWUpdate update(chunk);
  update.values = tensor.values + chunk.first;
  update.first = tensor.first + chunk.first;
  update.second = tensor.second + chunk.first;
  update.gradients = tensor.gradients + chunk.first;
  update.compute = tensor.compute == nullptr ? nullptr : tensor.compute + chunk.first;
  update.constants = constants;
  update.grad_scale = step.grad_scale;
  update.step_size = scalars.learning_rate / scalars.first_correction;
  update.inverse_root_correction = 1.0f / sqrtf(scalars.second_correction);
  update.decay = 1.0f - scalars.learning_rate * tensor.weight_decay;
  const bool is_packed = is_device_aligned(update.values, 16) && is_device_aligned(update.first, 16) &&
                         is_device_aligned(update.second, 16) && is_device_aligned(update.gradients, 16) &&
                         is_device_aligned(update.compute, 8);
  for_chunk(update, chunk.count, is_packed);
}

struct SgdUpdate {
  __device__ __forceinline__ explicit SgdUpdate(const Chunk& chunk) : touched(chunk) {}

  TouchedElements touched;
  float *values, *buffer;
  const float* gradients;
  bf16* compute;
  float learning_rate, momentum, grad_scale, decay;

  template <int kCount>
  struct Loaded {
    float x[kCount], g[kCount], velocity[kCount];
    bool is_touched;
  };
  template <int kCount>
  __device__ __forceinline__ void load(int i, Loaded<kCount>& loaded) const {
    loaded.is_touched = touched.at(i);
    cuda::load<kStreaming>(values + i, loaded.x);
    cuda::load<kStreaming>(buffer + i, loaded.velocity);
  }
  template <int kCount>
  __device__ __forceinline__ void load_gradients(int i, Loaded<kCount>& loaded) const {
    load_touched(gradients + i, loaded.is_touched, loaded.g);
  }
  template <int kCount>
  __device__ __forceinline__ void store(int i, Loaded<kCount>& loaded) const {
    auto& [x, g, velocity, is_touched] = loaded;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      velocity[j] = velocity[j] * momentum + g[j] * grad_scale;
      x[j] = x[j] * decay - learning_rate * velocity[j];
    }
    cuda::store<kStreaming>(buffer + i, velocity);
    store_parameters(values, compute, i, x);
  }
};

__global__ void __launch_bounds__(kThreads)
    sgd_chunks(const OptimizerTensor* tensors, const int64_t* chunks, float momentum, const StepScalars* step_scalars,
               const double* squares, const double* loss) {
  const StepScalars scalars = *step_scalars;
  const Step step(scalars, *squares, *loss);
  if (!step.is_finite) return;
  const Chunk chunk(tensors, chunks);
  const OptimizerTensor& tensor = chunk.tensor;
  SgdUpdate update(chunk);
  update.values = tensor.values + chunk.first;
  update.buffer = tensor.first + chunk.first;
  update.gradients = tensor.gradients + chunk.first;
  update.compute = tensor.compute == nullptr ? nullptr : tensor.compute + chunk.first;
  update.learning_rate = scalars.learning_rate;
  update.momentum = momentum;
  update.grad_scale = step.grad_scale;
  update.decay = 1.0f - scalars.learning_rate * tensor.weight_decay;
  const bool is_packed = is_device_aligned(update.values, 16) && is_device_aligned(update.buffer, 16) &&
                         is_device_aligned(update.gradients, 16) && is_device_aligned(update.compute, 8);
  for_chunk(update, chunk.count, is_packed);
}

// ---- Element by element.

template <bool kWeighted>
struct Interpolate {
  float* parameters;
  const float *target, *weights;
  bf16* compute;
  float alpha;

  template <int kCount>
  struct Loaded {
    float x[kCount], target[kCount], weights[kWeighted ? kCount : 1] = {};
  };
  template <int kCount>
  __device__ Loaded<kCount> load(int64_t, int64_t i) const {
    Loaded<kCount> loaded;
    cuda::load<kStreaming>(parameters + i, loaded.x);
    cuda::load<kStreaming>(target + i, loaded.target);
    if constexpr (kWeighted) cuda::load<kStreaming>(weights + i, loaded.weights);
    return loaded;
  }
  template <int kCount>
  __device__ void store(int64_t, int64_t i, Loaded<kCount>& loaded) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      float rate = alpha;
      if constexpr (kWeighted) rate *= loaded.weights[j];
      // θ + (φ − θ) need not be φ in floating point.
      const float x = loaded.x[j], target_value = loaded.target[j];
      loaded.x[j] = rate == 1.0f ? target_value : x + rate * (target_value - x);
    }
    cuda::store<kStreaming>(parameters + i, loaded.x);
    if (compute != nullptr) cuda::store<kStreaming>(compute + i, loaded.x);
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    subtract_chunks(T* student, const T* teacher, int64_t size, float scale, bool is_packed, double* sums) {
  __shared__ double shared[kThreads / 32];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int count = static_cast<int>(size - first < kChunk ? size - first : kChunk);
  student += first;
  teacher += first;
  double sum = 0;
  const int packed_count = is_packed ? count / kPack<T> * kPack<T> : 0;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x) * kPack<T>; i < packed_count; i += kThreads * kPack<T>) {
    float x[kPack<T>], target[kPack<T>];
    load(student + i, x);
    load(teacher + i, target);
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) x[j] -= target[j];
    add_squares(x, sum);
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) x[j] *= scale;
    store(student + i, x);
  }
  for (int i = packed_count + static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const float difference[1] = {to_float(student[i]) - to_float(teacher[i])};
    add_squares(difference, sum);
    student[i] = from_float<T>(scale * difference[0]);
  }
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

void add_up(Context& context, const double* sums, int64_t count, double* out, bool accumulate) {
  launch(context, finish_sums, dim3(1), dim3(kFinishThreads), 0, sums, count, out, accumulate);
}

}  // namespace

UpdatePlan plan_update(Context& context, const std::vector<OptimizerTensor>& tensors) {
  std::vector<int64_t> chunks;
  for (size_t t = 0; t < tensors.size(); ++t) {
    for (int64_t first = 0; first < tensors[t].count; first += kChunk) {
      chunks.push_back(static_cast<int64_t>(t));
      chunks.push_back(first);
    }
  }
  const int64_t num_tensors = static_cast<int64_t>(tensors.size()), num_words = static_cast<int64_t>(chunks.size());
  OptimizerTensor* device_tensors = context.arena.allocate<OptimizerTensor>(num_tensors);
  int64_t* device_chunks = context.arena.allocate<int64_t>(num_words);
  // Pageable memory is copied before the call returns, by the context's uploads or by the driver.
  if (num_tensors > 0) copy_to_device(context, device_tensors, tensors.data(), num_tensors);
  if (num_words > 0) copy_to_device(context, device_chunks, chunks.data(), num_words);
  return {device_tensors, device_chunks, num_words / 2};
}

void squared_norm(Context& context, const UpdatePlan& plan, double* squares) {
  const DeviceArena::Scope scope(context.arena);
  double* sums = context.arena.allocate<double>(plan.num_chunks);
  if (plan.num_chunks > 0) {
    launch(context, square_chunks, dim3(static_cast<unsigned>(plan.num_chunks)), dim3(kThreads), 0, plan.tensors,
           plan.chunks, sums);
  }
  add_up(context, sums, plan.num_chunks, squares, false);
}

void adamw(Context& context, const UpdatePlan& plan, const AdamWConstants& constants, const StepScalars* scalars,
           const double* squares, const double* loss) {
  if (plan.num_chunks == 0) return;
  launch(context, adamw_chunks, dim3(static_cast<unsigned>(plan.num_chunks)), dim3(kThreads), 0, plan.tensors,
         plan.chunks, constants, scalars, squares, loss);
}

void sgd(Context& context, const UpdatePlan& plan, float momentum, const StepScalars* scalars, const double* squares,
         const double* loss) {
  if (plan.num_chunks == 0) return;
  launch(context, sgd_chunks, dim3(static_cast<unsigned>(plan.num_chunks)), dim3(kThreads), 0, plan.tensors,
         plan.chunks, momentum, scalars, squares, loss);
}

void interpolate(Context& context, float* parameters, const float* target, const float* weights, bf16* compute,
                 int64_t count, float alpha) {
  const bool is_packed = is_aligned(parameters) && is_aligned(target) && is_aligned(weights) && is_aligned(compute);
  if (weights == nullptr) {
    for_each<kFloats>(context, Interpolate<false>{parameters, target, nullptr, compute, alpha}, count, is_packed);
  } else {
    for_each<kFloats>(context, Interpolate<true>{parameters, target, weights, compute, alpha}, count, is_packed);
  }
}

template <typename T>
void squared_error(Context& context, T* student, const T* teacher, int64_t count, float scale, double* sum) {
  if (count == 0) return;
  const int64_t num_chunks = divide_up(count, kChunk);
  const DeviceArena::Scope scope(context.arena);
  double* sums = context.arena.allocate<double>(num_chunks);
  launch(context, subtract_chunks<T>, dim3(static_cast<unsigned>(num_chunks)), dim3(kThreads), 0, student, teacher,
         count, scale, is_aligned(student) && is_aligned(teacher), sums);
  add_up(context, sums, num_chunks, sum, true);
}

template void squared_error(Context&, float*, const float*, int64_t, float, double*);
template void squared_error(Context&, bf16*, const bf16*, int64_t, float, double*);

}  // namespace limbeck::cuda
