// Activations, normalisations and optimiser updates: one pass over memory each. The formulas are those of ops/*.h.
// Included by kernels_<isa>.cc, after vec.inl.h.

void add(const float* x, float* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) { put(y + i, get(y + i) + get(x + i)); });
}

constexpr float kGeluScale = 0.7978845608028654f;  // √(2/π)
constexpr float kGeluCubic = 0.044715f;

// 0.5·(1 + tanh(u)) = sigmoid(2u) = 1 / (1 + exp(−2u)), which loses nothing for large negative u.
void gelu_tanh_forward(const float* x, float* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF v = get(x + i);
    put(y + i, v / (1.0f + exp(v * (-2 * kGeluScale - 2 * kGeluScale * kGeluCubic * (v * v)))));
  });
}

void gelu_tanh_backward(const float* x, const float* d_y, float* d_x, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF v = get(x + i);
    const VecF s = sigmoid(2 * kGeluScale * (v + kGeluCubic * v * v * v));
    const VecF d_u = 2 * kGeluScale * (1.0f + 3 * kGeluCubic * v * v);
    put(d_x + i, get(d_y + i) * (s + v * s * (1.0f - s) * d_u));
  });
}

void gelu_erf_forward(const float* x, float* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF v = get(x + i);
    put(y + i, v * normal_cdf(v));
  });
}

void gelu_erf_backward(const float* x, const float* d_y, float* d_x, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF v = get(x + i);
    const VecF density = 0.3989422804014327f * exp(-0.5f * v * v);
    put(d_x + i, get(d_y + i) * (normal_cdf(v) + v * density));
  });
}

void swiglu_forward(const float* gate, const float* up, float* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF v = get(gate + i);
    put(y + i, v / (1.0f + exp(-v)) * get(up + i));
  });
}

/// One row: gate_up [2·count], d_y [count]
void swiglu_backward(const float* gate_up, const float* d_y, float* d_gate_up, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF gate = get(gate_up + i), up = get(gate_up + count + i), gradient = get(d_y + i);
    const VecF s = sigmoid(gate);
    put(d_gate_up + i, gradient * up * s * (1.0f + gate * (1.0f - s)));
    put(d_gate_up + count + i, gradient * gate * s);
  });
}

inline float row_sum(const float* x, int64_t count) {
  VecF sums = {};
  for_each_vector(count, [&](int64_t i, auto get, auto) { sums += get(x + i); });
  return horizontal_sum(sums);
}

/// One row; returns rstd. y may be x.
float layer_norm_forward(const float* x, const float* gamma, const float* beta, float* y, float* mean, int64_t count,
                         float eps) {
  const float center = row_sum(x, count) / static_cast<float>(count);
  VecF squares = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VecF difference = load(x + i) - center;
    squares += difference * difference;
  }
  float square_sum = horizontal_sum(squares);
  for (; i < count; ++i) square_sum += (x[i] - center) * (x[i] - center);
  const float rstd = 1.0f / __builtin_sqrtf(square_sum / static_cast<float>(count) + eps);
  for_each_vector(count, [&](int64_t j, auto get, auto put) {
    put(y + j, (get(x + j) - center) * rstd * get(gamma + j) + get(beta + j));
  });
  *mean = center;
  return rstd;
}

/// One row: d_x +=, d_gamma +=, d_beta +=
void layer_norm_backward(const float* x, const float* gamma, float mean, float rstd, const float* d_y, float* d_x,
                         float* d_gamma, float* d_beta, int64_t count) {
  VecF gradients = {}, products = {};
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF gradient = get(d_y + i);
    const VecF weighted = gradient * get(gamma + i);  // 0 in the padding, so that normed there does not count
    const VecF normed = (get(x + i) - mean) * rstd;
    gradients += weighted;
    products += weighted * normed;
    put(d_gamma + i, get(d_gamma + i) + gradient * normed);
    put(d_beta + i, get(d_beta + i) + gradient);
  });
  const float mean_gradient = horizontal_sum(gradients) / static_cast<float>(count);
  const float mean_product = horizontal_sum(products) / static_cast<float>(count);
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF normed = (get(x + i) - mean) * rstd;
    put(d_x + i, get(d_x + i) + (get(d_y + i) * get(gamma + i) - mean_gradient - normed * mean_product) * rstd);
  });
}

/// One row; returns rstd. y may be x.
float rms_norm_forward(const float* x, const float* gamma, float* y, int64_t count, float eps) {
  VecF squares = {};
  for_each_vector(count, [&](int64_t i, auto get, auto) { squares += get(x + i) * get(x + i); });
  const float rstd = 1.0f / __builtin_sqrtf(horizontal_sum(squares) / static_cast<float>(count) + eps);
  for_each_vector(count, [&](int64_t i, auto get, auto put) { put(y + i, get(x + i) * rstd * get(gamma + i)); });
  return rstd;
}

/// One row: d_x +=, d_gamma +=
void rms_norm_backward(const float* x, const float* gamma, float rstd, const float* d_y, float* d_x, float* d_gamma,
                       int64_t count) {
  VecF products = {};
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF gradient = get(d_y + i), normed = get(x + i) * rstd;
    products += gradient * get(gamma + i) * normed;
    put(d_gamma + i, get(d_gamma + i) + gradient * normed);
  });
  const float mean_product = horizontal_sum(products) / static_cast<float>(count);
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    put(d_x + i, get(d_x + i) + (get(d_y + i) * get(gamma + i) - get(x + i) * rstd * mean_product) * rstd);
  });
}

/// Σ x², added up in double at least every 1,024 floats.
double square_sum(const float* x, int64_t count) {
  constexpr int64_t kBlock = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    VecF squares = {};
    for_each_vector(begin + kBlock < count ? kBlock : count - begin, [&](int64_t i, auto get, auto) {
      const VecF v = get(x + begin + i);
      squares += v * v;
    });
    total += static_cast<double>(horizontal_sum(squares));
  }
  return total;
}

void subtract(const float* x, float* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) { put(y + i, get(y + i) - get(x + i)); });
}

void interpolate(float* parameters, const float* target, int64_t count, float alpha) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF theta = get(parameters + i);
    put(parameters + i, theta + alpha * (get(target + i) - theta));
  });
}

void adamw(const AdamWUpdate& update, float* parameters, const float* gradients, float* first, float* second,
           int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF gradient = get(gradients + i) * update.grad_scale;
    const VecF m = get(first + i) * update.beta1 + gradient * update.one_minus_beta1;
    const VecF v = get(second + i) * update.beta2 + gradient * gradient * update.one_minus_beta2;
    put(first + i, m);
    put(second + i, v);
    const VecF denominator = sqrt(v) * update.inverse_root_correction + update.epsilon;
    put(parameters + i, get(parameters + i) * update.decay - update.step_size * m / denominator);
  });
}

void sgd(const SgdUpdate& update, float* parameters, const float* gradients, float* buffer, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto get, auto put) {
    const VecF velocity = get(buffer + i) * update.momentum + get(gradients + i) * update.grad_scale;
    put(buffer + i, velocity);
    put(parameters + i, get(parameters + i) * update.decay - update.learning_rate * velocity);
  });
}

/// One row of heads: turns the pairs (x[j], x[j + half]) of each head by the row's angles.
///   cosines, sines [half]
void rotate_heads(float* x, int64_t num_heads, int64_t half, const float* cosines, const float* sines) {
  for (int64_t head = 0; head < num_heads; ++head, x += 2 * half) {
    for_each_vector(half, [&](int64_t j, auto get, auto put) {
      const VecF low = get(x + j), high = get(x + half + j), c = get(cosines + j), s = get(sines + j);
      put(x + j, low * c - high * s);
      put(x + half + j, high * c + low * s);
    });
  }
}
