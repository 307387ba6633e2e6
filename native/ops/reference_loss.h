#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/loss_head.h"

namespace limbeck {

/// What loss_head.h defines, in plain loops over one number type: the op's specification, compared with in tests.
template <typename T>
struct ReferenceTeacher {
  const T* dense = nullptr;  // [num_rows, vocab_size] logits, or
  const int32_t* top_k_indices = nullptr;
  const T* top_k_values = nullptr;
  const T* log_sum_exp = nullptr;
  int64_t top_k = 0;
  const int32_t* classes = nullptr;  // [vocab_size] or null; top_k_indices name classes
  int64_t num_classes = 0;
};

template <typename T>
T reference_log_sum_exp(const std::vector<T>& x) {
  T largest = x[0];
  for (T value : x) largest = value > largest ? value : largest;
  T sum = 0;
  for (T value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

template <typename T>
std::vector<T> reference_softmax(const std::vector<T>& x) {
  const T lse = reference_log_sum_exp(x);
  std::vector<T> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = std::exp(x[i] - lse);
  return out;
}

/// Student logits of one row.
template <typename T>
std::vector<T> reference_logits(const T* hidden, const T* table, const T* bias, int64_t hidden_size,
                                int64_t vocab_size) {
  std::vector<T> z(static_cast<size_t>(vocab_size));
  for (int64_t v = 0; v < vocab_size; ++v) {
    z[v] = bias ? bias[v] : T(0);
    for (int64_t c = 0; c < hidden_size; ++c) z[v] += hidden[c] * table[v * hidden_size + c];
  }
  return z;
}

/// The logits of the teacher's classes: of the columns themselves, or the log-sum-exp of those of each class.
template <typename T>
std::vector<T> reference_grouped(const std::vector<T>& z, const ReferenceTeacher<T>& teacher) {
  if (teacher.classes == nullptr) return z;
  std::vector<std::vector<T>> members(static_cast<size_t>(teacher.num_classes));
  for (size_t v = 0; v < z.size(); ++v) members[teacher.classes[v]].push_back(z[v]);
  std::vector<T> out;
  for (const std::vector<T>& member : members) {
    out.push_back(member.empty() ? -std::numeric_limits<T>::infinity() : reference_log_sum_exp(member));
  }
  return out;
}

/// The student's log-probabilities over the classes that the distillation loss compares: the vocabulary; or the
/// teacher's k indices and, at temperature 1 when there are more classes, one class for the rest.
template <typename T>
std::vector<T> reference_class_logits(const std::vector<T>& columns, const ReferenceTeacher<T>& teacher, int64_t row,
                                      T temperature) {
  const std::vector<T> z = reference_grouped(columns, teacher);
  std::vector<T> out;
  if (teacher.dense) {
    for (T value : z) out.push_back(value / temperature);
    return out;
  }
  std::vector<bool> listed(z.size(), false);
  for (int64_t i = 0; i < teacher.top_k; ++i) {
    const int32_t index = teacher.top_k_indices[row * teacher.top_k + i];
    listed[index] = true;
    out.push_back(z[index] / temperature);
  }
  if (temperature == T(1) && teacher.top_k < static_cast<int64_t>(z.size())) {
    std::vector<T> rest;
    for (size_t v = 0; v < z.size(); ++v) {
      if (!listed[v]) rest.push_back(z[v]);
    }
    out.push_back(reference_log_sum_exp(rest));
  }
  return out;
}

/// What the loss holds constant: soft labels and gate of one row.
template <typename T>
struct ReferenceSoftLabels {
  std::vector<T> soft;
  T gate = 1;
};

template <typename T>
ReferenceSoftLabels<T> reference_soft_labels(const std::vector<T>& z, const ReferenceTeacher<T>& teacher, int64_t row,
                                             int32_t label, T temperature, T fusion, T gate) {
  const int64_t vocab_size = static_cast<int64_t>(z.size());
  std::vector<T> student = reference_class_logits(z, teacher, row, temperature);
  const T student_lse = reference_log_sum_exp(student);
  std::vector<T> teacher_classes;
  int64_t teacher_rank = 0, student_rank = 0;
  for (T value : z) student_rank += value > z[label];
  const int32_t label_class = teacher.classes ? teacher.classes[label] : label;
  if (teacher.classes) {  // among the listed
    const std::vector<T> grouped = reference_grouped(z, teacher);
    student_rank = 0;
    bool is_listed = false;
    for (int64_t i = 0; i < teacher.top_k; ++i) {
      const int32_t index = teacher.top_k_indices[row * teacher.top_k + i];
      is_listed = is_listed || index == label_class;
      student_rank += grouped[index] > grouped[label_class];
    }
    if (!is_listed) student_rank = teacher.top_k;
  }
  if (teacher.dense) {
    const T* t = teacher.dense + row * vocab_size;
    for (int64_t v = 0; v < vocab_size; ++v) {
      teacher_classes.push_back(t[v] / temperature);
      teacher_rank += t[v] > t[label];
    }
  } else {
    const int64_t k = teacher.top_k;
    T listed_mass = 0;
    teacher_rank = k;
    for (int64_t i = 0; i < k; ++i) {
      const T value = teacher.top_k_values[row * k + i];
      const T log_probability = value - teacher.log_sum_exp[row];
      listed_mass += std::exp(log_probability);
      teacher_classes.push_back(log_probability / temperature);
      if (teacher.top_k_indices[row * k + i] == label_class) {
        teacher_rank = 0;
        for (int64_t j = 0; j < k; ++j) teacher_rank += teacher.top_k_values[row * k + j] > value;
      }
    }
    if (teacher_classes.size() < student.size()) {
      teacher_classes.push_back(std::log(listed_mass < T(1) ? T(1) - listed_mass : T(0)));
    }
  }
  std::vector<T> fused(student.size());
  for (size_t c = 0; c < student.size(); ++c) {
    fused[c] = fusion == T(1) ? teacher_classes[c]
                              : (T(1) - fusion) * (student[c] - student_lse) + fusion * teacher_classes[c];
  }
  return {reference_softmax(fused), teacher_rank > student_rank ? gate : T(1)};
}

template <typename T>
T reference_cross_entropy(const std::vector<T>& z, int32_t label, const uint8_t* allowed) {
  std::vector<T> taking_part;
  for (size_t v = 0; v < z.size(); ++v) {
    if (!allowed || allowed[v] || static_cast<int32_t>(v) == label) taking_part.push_back(z[v]);
  }
  return reference_log_sum_exp(taking_part) - z[label];
}

/// gate·τ²·KL(soft labels ‖ student classes).
template <typename T>
T reference_distillation(const std::vector<T>& z, const ReferenceTeacher<T>& teacher, int64_t row,
                         const ReferenceSoftLabels<T>& labels, T temperature) {
  const std::vector<T> student = reference_class_logits(z, teacher, row, temperature);
  const T lse = reference_log_sum_exp(student);
  T sum = 0;
  for (size_t c = 0; c < student.size(); ++c) {
    if (labels.soft[c] > 0) sum += labels.soft[c] * (std::log(labels.soft[c]) - (student[c] - lse));
  }
  return labels.gate * temperature * temperature * sum;
}

}  // namespace limbeck
