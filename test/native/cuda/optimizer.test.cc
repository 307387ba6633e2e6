#include "cuda/optimizer.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "compare.h"
#include "device_test.h"
#include "ops/reference.h"

namespace limbeck::cuda {
namespace {

using namespace limbeck_test;

constexpr int64_t kChunk = UpdatePlan::kChunkFloats;
// One element, odd ends, a whole chunk, one more, and several.
const std::vector<int64_t> kCounts = {1, 3, 7, 64, 1000, kChunk, kChunk + 1, 2 * kChunk + 77};

/// Tensors of all counts; every other one lies where no pack begins, every third has a rounded copy.
struct Tensors {
  explicit Tensors(bool has_second) {
    for (size_t t = 0; t < kCounts.size(); ++t) {
      const int64_t count = kCounts[t];
      offsets.push_back(t % 2 == 1 ? 1 : 0);
      const int64_t size = count + offsets[t];
      host_values.push_back(random_floats(size, 10 * t));
      host_gradients.push_back(random_floats(size, 10 * t + 1, 0.1f));
      host_first.push_back(random_floats(size, 10 * t + 2, 0.1f));
      host_second.push_back(random_floats(size, 10 * t + 3, 0.1f));
      for (float& value : host_second[t]) value *= value;
      values.push_back(std::make_unique<DeviceArray<float>>(host_values[t]));
      gradients.push_back(std::make_unique<DeviceArray<float>>(host_gradients[t]));
      first.push_back(std::make_unique<DeviceArray<float>>(host_first[t]));
      second.push_back(std::make_unique<DeviceArray<float>>(host_second[t]));
      compute.push_back(std::make_unique<DeviceArray<bf16>>(size));
      OptimizerTensor tensor;
      tensor.values = values[t]->data() + offsets[t];
      tensor.gradients = gradients[t]->data() + offsets[t];
      tensor.first = first[t]->data() + offsets[t];
      tensor.second = has_second ? second[t]->data() + offsets[t] : nullptr;
      tensor.compute = t % 3 != 0 ? compute[t]->data() + offsets[t] : nullptr;
      tensor.count = count;
      tensor.weight_decay = t % 4 == 0 ? 0.0f : 0.1f;
      list.push_back(tensor);
    }
  }

  double squares() const {
    double sum = 0;
    for (size_t t = 0; t < list.size(); ++t) {
      for (size_t i = offsets[t]; i < host_gradients[t].size(); ++i) {
        sum += double{host_gradients[t][i]} * host_gradients[t][i];
      }
    }
    return sum;
  }
  /// Everything that an update may change.
  std::vector<std::vector<float>> state() const {
    std::vector<std::vector<float>> out;
    for (size_t t = 0; t < list.size(); ++t) {
      out.push_back(values[t]->get());
      out.push_back(first[t]->get());
      out.push_back(second[t]->get());
    }
    return out;
  }
  /// Values, state and copies against tensor t of a reference; what lies before the tensor is untouched.
  void check(size_t t, const std::vector<double>& expected_values, const std::vector<double>& expected_first,
             const std::vector<double>& expected_second) const {
    const auto out = values[t]->get();
    const auto tail = [&](std::vector<float> x) { return std::vector<float>(x.begin() + offsets[t], x.end()); };
    CHECK(is_close(tail(out), expected_values, 2e-6));
    CHECK(is_close(tail(first[t]->get()), expected_first, 2e-6));
    CHECK(is_close(tail(second[t]->get()), expected_second, 2e-6));
    if (offsets[t] == 1) CHECK(out[0] == host_values[t][0] && first[t]->get()[0] == host_first[t][0]);
    if (list[t].compute != nullptr) CHECK(same_bits(tail(compute[t]->floats()), rounded<bf16>(tail(out))));
  }
  std::vector<double> wide(const std::vector<std::vector<float>>& x, size_t t) const {
    return std::vector<double>(x[t].begin() + offsets[t], x[t].end());
  }

  std::vector<int64_t> offsets;
  std::vector<std::vector<float>> host_values, host_gradients, host_first, host_second;
  std::vector<std::unique_ptr<DeviceArray<float>>> values, gradients, first, second;
  std::vector<std::unique_ptr<DeviceArray<bf16>>> compute;
  std::vector<OptimizerTensor> list;
};

constexpr AdamWConstants kConstants{0.9f, 0.999f, 1e-8f};
constexpr int kStep = 3;

StepScalars step_scalars(float max_grad_norm) {
  return {0.05f, max_grad_norm, static_cast<float>(1 - std::pow(double{kConstants.beta1}, kStep)),
          static_cast<float>(1 - std::pow(double{kConstants.beta2}, kStep)), 0};
}

void run(TestDevice& device, Tensors& tensors, bool is_adamw, float max_grad_norm, double loss_value,
         double* squares_out = nullptr) {
  const DeviceArray<StepScalars> scalars(std::vector<StepScalars>{step_scalars(max_grad_norm)});
  const DeviceArray<double> squares(1), loss(std::vector<double>{loss_value});
  const UpdatePlan plan = plan_update(device.context, tensors.list);
  squared_norm(device.context, plan, squares.data());
  if (is_adamw) {
    adamw(device.context, plan, kConstants, scalars.data(), squares.data(), loss.data());
  } else {
    sgd(device.context, plan, 0.8f, scalars.data(), squares.data(), loss.data());
  }
  const double out = squares.get()[0];
  if (squares_out != nullptr) *squares_out = out;
}

void check_update(bool is_adamw, float max_grad_norm) {
  TestDevice device;
  Tensors tensors(is_adamw);
  double squares = 0;
  run(device, tensors, is_adamw, max_grad_norm, 2.5, &squares);
  CHECK(std::fabs(squares - tensors.squares()) <= 1e-7 * tensors.squares());
  const double norm = std::sqrt(tensors.squares());
  const float grad_scale = max_grad_norm > 0 && norm > max_grad_norm ? static_cast<float>(max_grad_norm / norm) : 1.0f;
  for (size_t t = 0; t < tensors.list.size(); ++t) {
    std::vector<double> values = tensors.wide(tensors.host_values, t),
                        gradients = tensors.wide(tensors.host_gradients, t);
    std::vector<double> first = tensors.wide(tensors.host_first, t), second = tensors.wide(tensors.host_second, t);
    const int64_t count = tensors.list[t].count;
    const float decay = tensors.list[t].weight_decay;
    if (is_adamw) {
      const AdamWOptions options{0.05f, kConstants.beta1, kConstants.beta2, kConstants.epsilon, decay,
                                 kStep, grad_scale};
      reference_adamw<double>(values.data(), gradients.data(), first.data(), second.data(), count, options);
    } else {
      reference_sgd<double>(values.data(), gradients.data(), first.data(), count, {0.05f, 0.8f, decay, grad_scale});
    }
    tensors.check(t, values, first, second);
  }
  TestDevice other;
  Tensors again(is_adamw);
  run(other, again, is_adamw, max_grad_norm, 2.5);
  CHECK(again.state() == tensors.state());
}

void check_interpolate(int64_t count, int64_t offset, bool is_weighted, bool has_compute, float alpha) {
  TestDevice device;
  const auto x = random_floats(count + offset, 1), target = random_floats(count + offset, 2);
  auto weights = random_floats(count + offset, 3);
  for (size_t i = 0; i < weights.size(); i += 5) weights[i] = 1;
  const DeviceArray<float> device_x(x), device_target(target), device_weights(weights);
  const DeviceArray<bf16> compute(count + offset);
  interpolate(device.context, device_x.data() + offset, device_target.data() + offset,
              is_weighted ? device_weights.data() + offset : nullptr, has_compute ? compute.data() + offset : nullptr,
              count, alpha);
  std::vector<double> expected = widen(x);
  for (int64_t i = offset; i < count + offset; ++i) {
    expected[i] += double{alpha} * (is_weighted ? weights[i] : 1) * (double{target[i]} - x[i]);
  }
  auto out = device_x.get();
  CHECK(is_close(out, expected, 1e-6));
  for (int64_t i = offset; i < count + offset; ++i) {
    if (alpha * (is_weighted ? weights[i] : 1) == 1) CHECK(out[i] == target[i]);
  }
  if (!has_compute) return;
  auto copy = compute.floats();
  copy.erase(copy.begin(), copy.begin() + offset);
  out.erase(out.begin(), out.begin() + offset);
  CHECK(same_bits(copy, rounded<bf16>(out)));
}

template <typename T>
void check_squared_error(int64_t count, int64_t offset) {
  TestDevice device;
  constexpr float kScale = 0.25f;
  const auto x = rounded<T>(random_floats(count + offset, 1)), target = rounded<T>(random_floats(count + offset, 2));
  std::vector<double> expected = widen(x);
  double expected_sum = 3;
  for (int64_t i = offset; i < count + offset; ++i) {
    const double difference = double{x[i]} - target[i];
    expected[i] = kScale * difference;
    expected_sum += difference * difference;
  }
  const DeviceArray<T> student(converted<T>(x)), teacher(converted<T>(target));
  const DeviceArray<double> sum(std::vector<double>{3.0});
  squared_error(device.context, student.data() + offset, teacher.data() + offset, count, kScale, sum.data());
  CHECK(is_close(student.floats(), expected, kTolerance<T>));
  CHECK(std::fabs(sum.get()[0] - expected_sum) <= 1e-6 * expected_sum);
  const DeviceArray<T> again(converted<T>(x));
  const DeviceArray<double> sum_again(std::vector<double>{3.0});
  squared_error(device.context, again.data() + offset, teacher.data() + offset, count, kScale, sum_again.data());
  CHECK(same_bits(sum_again.get(), sum.get()));
}

}  // namespace

TEST("cuda adamw and sgd of many tensors equal the reference, with and without clipping, the same bits each time") {
  for (const float max_grad_norm : {0.0f, 1.0f, 1e6f}) {
    check_update(true, max_grad_norm);
    check_update(false, max_grad_norm);
  }
}

TEST("cuda adamw of rows without gradients leaves what an update with zeros leaves") {
  constexpr int64_t kRows = 300, kRowSize = 100;  // two chunks, and packs of four within rows
  constexpr int64_t kCount = kRows * kRowSize;
  const auto host_values = random_floats(kCount, 1);
  auto host_gradients = random_floats(kCount, 2), host_first = random_floats(kCount, 3),
       host_second = random_floats(kCount, 4);
  std::vector<uint8_t> host_touched(kRows);
  for (int64_t i = 0; i < kCount; ++i) {
    const int64_t row = i / kRowSize;
    host_touched[row] = row % 3 == 0;
    if (!host_touched[row]) host_gradients[i] = 0;
    host_second[i] *= host_second[i];
    if (row % 3 != 1) continue;  // every third row has never had a gradient, but for an odd element
    host_first[i] = i % 37 == 0 ? -0.0f : 0.0f;
    host_second[i] = i % 41 == 0 ? 1e-3f : 0.0f;
  }
  const DeviceArray<uint8_t> touched(host_touched);
  for (const float weight_decay : {0.0f, 0.1f}) {
    std::vector<std::vector<float>> states[2];
    for (const bool knows_rows : {false, true}) {
      TestDevice device;
      const DeviceArray<float> values(host_values), first(host_first), second(host_second);
      // What is not touched is not read.
      auto known_gradients = host_gradients;
      for (int64_t i = 0; knows_rows && i < kCount; ++i) {
        if (!host_touched[i / kRowSize]) known_gradients[i] = std::numeric_limits<float>::quiet_NaN();
      }
      const DeviceArray<float> gradients(known_gradients);
      const DeviceArray<bf16> compute(converted<bf16>(host_values));
      OptimizerTensor tensor{values.data(), gradients.data(), first.data(),
                             second.data(), compute.data(),   kCount,
                             weight_decay,  nullptr,          0};
      if (knows_rows) tensor.touched_rows = touched.data(), tensor.row_size = kRowSize;
      const DeviceArray<StepScalars> scalars(std::vector<StepScalars>{step_scalars(1)});
      const DeviceArray<double> squares(1), loss(std::vector<double>{1.0});
      const UpdatePlan plan = plan_update(device.context, {tensor});
      squared_norm(device.context, plan, squares.data());
      adamw(device.context, plan, kConstants, scalars.data(), squares.data(), loss.data());
      states[knows_rows] = {values.get(), first.get(), second.get(), compute.floats()};
    }
    for (size_t i = 0; i < states[0].size(); ++i) CHECK(same_bits(states[0][i], states[1][i]));
    CHECK(states[0][0] != host_values);
  }
}

TEST("cuda updates change nothing where a gradient or the loss is no finite number") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const bool is_adamw : {true, false}) {
    for (const float bad : {kInfinity, -kInfinity, kNaN}) {
      for (const size_t tensor : {size_t{0}, kCounts.size() - 1}) {
        TestDevice device;
        Tensors tensors(is_adamw);
        const auto before = tensors.state();
        tensors.host_gradients[tensor].back() = bad;
        tensors.gradients[tensor]->set(tensors.host_gradients[tensor]);
        run(device, tensors, is_adamw, 1, 2.5);
        CHECK(tensors.state() == before);
        for (const auto& copy : tensors.compute) {
          for (const float value : copy->floats()) CHECK(std::isnan(value));
        }
      }
      TestDevice device;
      Tensors tensors(is_adamw);
      const auto before = tensors.state();
      run(device, tensors, is_adamw, 1, double{bad});
      CHECK(tensors.state() == before);
    }
  }
}

TEST("cuda plan_update of nothing is a norm of 0") {
  TestDevice device;
  const UpdatePlan plan = plan_update(device.context, {});
  const DeviceArray<double> squares(1);
  squared_norm(device.context, plan, squares.data());
  CHECK(squares.get()[0] == 0);
}

TEST("cuda interpolate equals the reference, and is the target itself at rate 1") {
  for (const int64_t count : {0, 1, 3, 64, 1000, 20001}) {
    for (const int64_t offset : {0, 1}) {
      for (const float alpha : {0.3f, 1.0f}) {
        check_interpolate(count, offset, false, true, alpha);
        check_interpolate(count, offset, false, false, alpha);
        check_interpolate(count, offset, true, true, alpha);
      }
    }
  }
}

TEST("cuda squared_error leaves the scaled difference and adds its squares") {
  for (const int64_t count : {0, 1, 3, 64, 1000, 16384, 40001}) {
    for (const int64_t offset : {0, 1}) {
      check_squared_error<float>(count, offset);
      check_squared_error<bf16>(count, offset);
    }
  }
}

}  // namespace limbeck::cuda
