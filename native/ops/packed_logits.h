#pragma once

#include <cstdint>

#include "ops/context.h"

namespace limbeck {

/// Bits of one quantised log-probability, and its step in nats: codes reach down to e^-64, beside which the rest is
/// nothing.
constexpr int64_t kPackedCodeBits = 12;
constexpr double kPackedStep = 1.0 / 64;

/// Bytes of one row of `top_k` logits of a vocabulary: fp32 log-sum-exp, then for each logit ⌈log2 vocab_size⌉ bits of
/// its index and 12 of its code, then the code of the remaining mass; padded to whole bytes.
int64_t packed_row_bytes(int64_t top_k, int64_t vocab_size);

/// The k best logits and the log-sum-exp of rows, as codes round(−log p / step) of the k probabilities and of what the
/// other classes have together. Of p, these k + 1 classes as given, and p̃, those that unpack_top_k() gives, the error
/// e = log p̃ − log p before normalisation is at most step/2, so by Hoeffding's lemma
///   KL(p ‖ p̃) = log E_p[exp e] − E_p[e] ≤ step²/8 = 3.06e-5 nats
/// but for classes under e^-64, which add less than (k + 1)·e^-64.
///   indices, values [num_rows, top_k], log_sum_exp [num_rows] → packed [num_rows, packed_row_bytes] =
/// Throws Error("ERR_INVALID_ARGUMENT") for an index outside the vocabulary, Error("ERR_NOT_FINITE") for NaN or a
/// log-sum-exp that is not finite.
void pack_top_k(const int32_t* indices, const float* values, const float* log_sum_exp, int64_t num_rows, int64_t top_k,
                int64_t vocab_size, uint8_t* packed);

/// indices, values [num_rows, top_k] =, log_sum_exp [num_rows] =; the k + 1 classes sum to 1. Throws
/// Error("ERR_INVALID_ARGUMENT") for an index outside the vocabulary.
void unpack_top_k(const uint8_t* packed, int64_t num_rows, int64_t top_k, int64_t vocab_size, int32_t* indices,
                  float* values, float* log_sum_exp);
/// The same on all threads.
void unpack_top_k(Context& context, const uint8_t* packed, int64_t num_rows, int64_t top_k, int64_t vocab_size,
                  int32_t* indices, float* values, float* log_sum_exp);

}  // namespace limbeck
