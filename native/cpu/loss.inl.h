// One row of the loss head, and the row scans of ranking. Included by kernels_<isa>.cc, after vec.inl.h.
//
// Float sums run over at most kSumBlock columns before they are added up in double: a row of 50,000 logits would
// otherwise lose four digits.

constexpr int64_t kSumBlock = 1024;
constexpr float kMinusInfinity = -__builtin_inff();

inline float row_max(const float* x, int64_t count) {
  VecF largest[2] = {broadcast(kMinusInfinity), broadcast(kMinusInfinity)};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    largest[0] = max(largest[0], load(x + i));
    largest[1] = max(largest[1], load(x + i + kLanes));
  }
  float result = horizontal_max(max(largest[0], largest[1]));
  for (; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

inline float exp_one(float x) { return exp(broadcast(x))[0]; }

/// y[i] = exp((x[i] − shift)·scale), which may be in place; returns the sum.
inline double exp_row(const float* x, float* y, int64_t count, float shift, float scale) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
    VecF sums = broadcast(0.0f);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const VecF e = exp((load(x + i) - shift) * scale);
      store(y + i, e);
      sums += e;
    }
    double sum = horizontal_sum(sums);
    for (; i < end; ++i) sum += y[i] = exp_one((x[i] - shift) * scale);
    total += sum;
  }
  return total;
}

/// log Σ exp(x); −∞ for an empty row.
double log_sum_exp(const float* x, int64_t count) {
  const float largest = row_max(x, count);
  if (largest == kMinusInfinity) {
    // Nothing, or only −∞ — or NaN, which no comparison finds.
    for (int64_t i = 0; i < count; ++i) {
      if (x[i] != x[i]) return __builtin_nan("");
    }
    return static_cast<double>(kMinusInfinity);
  }
  if (largest == __builtin_inff()) {
    for (int64_t i = 0; i < count; ++i) {
      if (x[i] != x[i]) return __builtin_nan("");
    }
    return static_cast<double>(largest);
  }
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
    VecF sums = broadcast(0.0f);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sums += exp(load(x + i) - largest);
    double sum = horizontal_sum(sums);
    for (; i < end; ++i) sum += exp_one(x[i] - largest);
    total += sum;
  }
  return largest + __builtin_log(total);
}

/// Index of the first element > threshold at or after begin; count when there is none. NaN is never greater.
int64_t find_greater(const float* x, int64_t begin, int64_t count, float threshold) {
  const VecF limit = broadcast(threshold);
  int64_t i = begin;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    VecI is_greater{};
    for (int v = 0; v < 4; ++v) is_greater |= load(x + i + v * kLanes) > limit;
    if (lane_mask(is_greater) != 0) break;
  }
  for (; i + kLanes <= count; i += kLanes) {
    const uint32_t mask = lane_mask(load(x + i) > limit);
    if (mask != 0) return i + __builtin_ctz(mask);
  }
  for (; i < count; ++i) {
    if (x[i] > threshold) return i;
  }
  return count;
}

/// Number of elements that are not < limit: NaN among them, and all where the limit is NaN.
int64_t count_not_less(const float* x, int64_t count, float limit) {
  const VecF limits = broadcast(limit);
  VecI less{};  // −1 for each
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) less += load(x + i) < limits;
  int64_t result = count;
  for (int lane = 0; lane < kLanes; ++lane) result += less[lane];
  for (; i < count; ++i) result -= x[i] < limit;
  return result;
}

/// Number of columns above the label's.
inline int64_t rank_of(const float* x, int64_t count, int32_t label) {
  const float threshold = x[label];
  int64_t rank = 0;
  for (int64_t i = 0; i < count; ++i) rank += x[i] > threshold;
  return rank;
}

/// Log-probabilities to soft labels in place, and their divergence from the student's log-probabilities.
///   fused [count] → soft; classes: the student's log-probabilities
inline double soften(float* fused, const float* classes, int64_t count) {
  const double lse = log_sum_exp(fused, count);
  double divergence_sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double log_soft = static_cast<double>(fused[i]) - lse;
    fused[i] = exp_one(static_cast<float>(log_soft));
    if (fused[i] > 0) divergence_sum += fused[i] * (log_soft - static_cast<double>(classes[i]));
  }
  return divergence_sum;
}

inline float gated(const LossRow& row, int64_t teacher_rank, int64_t student_rank) {
  return teacher_rank > student_rank ? row.gate : 1.0f;
}

/// A row whose teacher lists `k` classes, each a column or a set of columns. All sums are of exp(z − largest).
struct ListedClasses {
  float* listed;   // [k] logits of the classes, less `largest`
  float* classes;  // [k + 1] the student's log-probabilities at the temperature, the last the rest
  float* soft;     // [k + 1] fused log-probabilities, then soft labels
  double* sums;    // [k + 1] of each class, the last of the rest
  float* place;    // [num_classes] 0 = not listed, else 1 + the place in the list; with row.classes
};

inline ListedClasses listed_scratch(const LossRow& row, float* scratch) {
  const int64_t width = (row.top_k + 16) / 16 * 16;
  return {scratch, scratch + width, scratch + 2 * width, reinterpret_cast<double*>(scratch + 3 * width),
          scratch + 5 * width};
}

/// Where no class is a set of columns: leaves exp(z − largest) in the columns that are not listed and 0 in the others.
inline void sum_columns(const LossRow& row, float largest, const ListedClasses& c) {
  const int64_t k = row.top_k;
  for (int64_t i = 0; i < k; ++i) {
    c.listed[i] = row.logits[row.top_k_indices[i]] - largest;
    c.sums[i] = exp_one(c.listed[i]);
    row.logits[row.top_k_indices[i]] = kMinusInfinity;
  }
  // With the k columns taken out, the row sums to the rest class itself: no 1 − Σ, which would cancel.
  c.sums[k] = exp_row(row.logits, row.logits, row.vocab_size, largest, 1.0f);
}

/// Leaves exp(z − largest) in all columns.
inline void sum_classes(const LossRow& row, float largest, const ListedClasses& c) {
  const int64_t k = row.top_k;
  for (int64_t i = 0; i < row.num_classes; ++i) c.place[i] = 0;
  for (int64_t i = 0; i < k; ++i) c.place[row.top_k_indices[i]] = static_cast<float>(i + 1);
  for (int64_t i = 0; i <= k; ++i) c.sums[i] = 0;
  exp_row(row.logits, row.logits, row.vocab_size, largest, 1.0f);
  for (int64_t v = 0; v < row.vocab_size; ++v) {
    const int64_t place = static_cast<int64_t>(c.place[row.classes[v]]);
    c.sums[place == 0 ? k : place - 1] += static_cast<double>(row.logits[v]);
  }
  for (int64_t i = 0; i < k; ++i) {
    c.listed[i] = static_cast<float>(__builtin_log(c.sums[i] > 1e-37 ? c.sums[i] : 1e-37));
  }
}

inline LossRowValue loss_row_top_k(const LossRow& row, float* scratch) {
  const int64_t k = row.top_k;
  const int64_t vocab_size = row.vocab_size;
  const bool has_rest = row.temperature == 1.0f && k < row.num_classes;
  const int64_t num_classes = has_rest ? k + 1 : k;
  const ListedClasses c = listed_scratch(row, scratch);
  float* z = row.logits;

  const int32_t label_class = row.classes ? row.classes[row.label] : row.label;
  int64_t label_place = -1;  // not listed
  for (int64_t i = 0; i < k; ++i) {
    if (row.top_k_indices[i] == label_class) label_place = i;
  }
  const int64_t student_rank = row.gate == 1.0f || row.classes ? 0 : rank_of(z, vocab_size, row.label);
  const float label_logit = z[row.label];
  const float largest = row_max(z, vocab_size);
  row.classes ? sum_classes(row, largest, c) : sum_columns(row, largest, c);
  const double rest_sum = c.sums[k];
  double sum = rest_sum;
  for (int64_t i = 0; i < k; ++i) sum += c.sums[i];
  const double log_sum = __builtin_log(sum);
  LossRowValue value{log_sum - static_cast<double>(label_logit - largest), 0};

  float gate = 1;
  if (row.gate != 1.0f) {
    // At best, where the label is not listed.
    const int64_t teacher_rank = label_place < 0 ? k : rank_of(row.top_k_values, k, static_cast<int32_t>(label_place));
    const int64_t class_rank = label_place < 0 ? k : rank_of(c.listed, k, static_cast<int32_t>(label_place));
    gate = gated(row, teacher_rank, row.classes ? class_rank : student_rank);
  }

  const float inverse_temperature = 1.0f / row.temperature;
  for (int64_t i = 0; i < k; ++i) c.classes[i] = c.listed[i] * inverse_temperature;
  const double log_rest = __builtin_log(rest_sum > 1e-37 ? rest_sum : 1e-37);
  if (has_rest) c.classes[k] = static_cast<float>(log_rest);
  const double class_lse = has_rest ? log_sum : log_sum_exp(c.classes, num_classes);
  double listed_mass = 0;
  for (int64_t i = 0; i < num_classes; ++i) c.classes[i] = static_cast<float>(c.classes[i] - class_lse);
  for (int64_t i = 0; i < k; ++i) {
    const float log_probability = row.top_k_values[i] - row.teacher_log_sum_exp;
    if (has_rest) listed_mass += exp_one(log_probability);
    c.soft[i] = log_probability * inverse_temperature;
  }
  if (has_rest) c.soft[k] = listed_mass < 1 ? static_cast<float>(__builtin_log(1 - listed_mass)) : kMinusInfinity;
  if (row.fusion != 1.0f) {
    for (int64_t i = 0; i < num_classes; ++i) {
      c.soft[i] = (1.0f - row.fusion) * c.classes[i] + row.fusion * c.soft[i];
    }
  }
  const float tau = row.temperature;
  value.distillation = static_cast<double>(gate * tau * tau) * soften(c.soft, c.classes, num_classes);
  if (!row.wants_gradient) return value;

  // d KL/dz of a column: its share of its class times (softmax − soft label) of the class.
  const float ce_scale = row.grad_scale * row.ce_weight;
  const float kd_scale = row.grad_scale * row.kd_weight * gate * tau;
  double rest_scale = ce_scale / sum;
  if (has_rest) rest_scale += kd_scale * (1 / sum - (rest_sum > 1e-37 ? c.soft[k] / rest_sum : 0.0));
  if (row.classes) {
    float* scales = c.listed;  // read for the last time above
    for (int64_t i = 0; i < k; ++i) {
      const double class_sum = c.sums[i] > 1e-37 ? c.sums[i] : 1e-37;
      scales[i] = static_cast<float>(ce_scale / sum + kd_scale * (exp_one(c.classes[i]) - c.soft[i]) / class_sum);
    }
    const float scale = static_cast<float>(rest_scale);
    for (int64_t v = 0; v < vocab_size; ++v) {
      const int64_t place = static_cast<int64_t>(c.place[row.classes[v]]);
      z[v] *= place == 0 ? scale : scales[place - 1];
    }
  } else {
    const float scale = static_cast<float>(rest_scale);
    for (int64_t v = 0; v < vocab_size; ++v) z[v] *= scale;
    for (int64_t i = 0; i < k; ++i) {
      const float probability = exp_one(static_cast<float>(c.listed[i] - log_sum));
      z[row.top_k_indices[i]] = ce_scale * probability + kd_scale * (exp_one(c.classes[i]) - c.soft[i]);
    }
  }
  z[row.label] -= ce_scale;
  return value;
}

/// Fused logits u = (1 − fusion)·z + fusion·t: e[i] = exp((u − max u)/τ), their sum, and
/// Σ e·((u − max u) − (z − max z))/τ, from which the divergence follows.
struct SoftSums {
  double sum, cross;
  float largest;
};

inline SoftSums soft_labels(const LossRow& row, float largest, float* soft) {
  const float* z = row.logits;
  const float* t = row.teacher;
  const int64_t count = row.vocab_size;
  const float inverse_temperature = 1.0f / row.temperature;
  const float student_share = 1.0f - row.fusion;
  SoftSums sums{0, 0, 0};
  if (student_share == 0.0f) {
    sums.largest = row_max(t, count);
  } else {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(soft + i, load(z + i) * student_share + load(t + i) * row.fusion);
    for (; i < count; ++i) soft[i] = z[i] * student_share + t[i] * row.fusion;
    t = soft;
    sums.largest = row_max(soft, count);
  }
  for (int64_t begin = 0; begin < count; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
    VecF sum = broadcast(0.0f), cross = broadcast(0.0f);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const VecF u = (load(t + i) - sums.largest) * inverse_temperature;
      const VecF e = exp(u);
      sum += e;
      // An entry of −∞ has no mass, and 0·∞ must not become NaN.
      const VecF term = e * (u - (load(z + i) - largest) * inverse_temperature);
      cross += e > 0.0f ? term : broadcast(0.0f);
      store(soft + i, e);
    }
    double block_sum = horizontal_sum(sum), block_cross = horizontal_sum(cross);
    for (; i < end; ++i) {
      const float u = (t[i] - sums.largest) * inverse_temperature;
      const float e = exp_one(u);
      block_sum += e;
      if (e > 0) block_cross += e * (u - (z[i] - largest) * inverse_temperature);
      soft[i] = e;
    }
    sums.sum += block_sum;
    sums.cross += block_cross;
  }
  return sums;
}

LossRowValue loss_row(const LossRow& row, float* scratch) {
  if (row.top_k > 0) return loss_row_top_k(row, scratch);
  const int64_t count = row.vocab_size;
  float* z = row.logits;
  const float label_logit = z[row.label];
  if (row.mask) {
    for (int64_t i = 0; i < count; ++i) z[i] += row.mask[i];
    z[row.label] = label_logit;
  }
  const float largest = row_max(z, count);
  float* soft = scratch;
  float* softened = soft + (count + 15) / 16 * 16;  // exp((z − max)/τ)

  SoftSums soft_sums{0, 0, 0};
  double softened_sum = 0;
  float gate = 1;
  const float tau = row.temperature;
  const bool is_tempered = tau != 1.0f;
  if (row.teacher) {
    if (row.gate != 1.0f) gate = gated(row, rank_of(row.teacher, count, row.label), rank_of(z, count, row.label));
    soft_sums = soft_labels(row, largest, soft);
    if (is_tempered) softened_sum = exp_row(z, softened, count, largest, 1.0f / tau);
  }
  const double sum = exp_row(z, z, count, largest, 1.0f);
  LossRowValue value{__builtin_log(sum) - static_cast<double>(label_logit - largest), 0};
  if (row.teacher) {
    if (!is_tempered) {
      softened = z;
      softened_sum = sum;
    }
    const double kl = soft_sums.cross / soft_sums.sum - __builtin_log(soft_sums.sum) + __builtin_log(softened_sum);
    value.distillation = static_cast<double>(gate * tau * tau) * kl;
  }
  if (!row.wants_gradient) return value;

  const float ce_scale = row.grad_scale * row.ce_weight;
  const VecF hard = broadcast(static_cast<float>(ce_scale / sum));
  int64_t i = 0;
  if (row.teacher) {
    const float kd_scale = row.grad_scale * row.kd_weight * gate * tau;
    const VecF student = broadcast(static_cast<float>(kd_scale / softened_sum));
    const VecF teacher = broadcast(static_cast<float>(kd_scale / soft_sums.sum));
    for (; i + kLanes <= count; i += kLanes) {
      store(z + i, load(z + i) * hard + (load(softened + i) * student - load(soft + i) * teacher));
    }
    for (; i < count; ++i) z[i] = z[i] * hard[0] + (softened[i] * student[0] - soft[i] * teacher[0]);
  } else {
    for (; i + kLanes <= count; i += kLanes) store(z + i, load(z + i) * hard);
    for (; i < count; ++i) z[i] *= hard[0];
  }
  z[row.label] -= ce_scale;
  return value;
}
