#pragma once

#include <vector>

#include "cuda/context.h"
#include "model/config.h"

namespace limbeck::cuda {

/// A small causal transformer of which one kernel encodes a sequence: where one is so short that every operation takes
/// less time than its launch, a cluster of blocks takes it through all of them.
struct SequenceEncoder {
  static constexpr int kMaxLayers = 6;

  /// Norms are fp32 [d], biases [out] or null, weights [out, in]: what is packed, and then read no more.
  struct Layer {
    const float *attention_norm_weight, *attention_norm_bias, *mlp_norm_weight, *mlp_norm_bias;
    const bf16 *qkv_weight, *qkv_bias;                            // [3·H·hd, d]
    const bf16 *attention_output_weight, *attention_output_bias;  // [d, H·hd]
    const bf16 *mlp_input_weight, *mlp_input_bias;                // [I, d]
    const bf16 *mlp_output_weight, *mlp_output_bias;              // [d, I]
  };

  int num_layers, hidden_size, num_heads, head_dim, intermediate_size;
  float norm_eps;
  bool norm_after, is_erf;
  const bf16 *words, *positions;                     // [·, d], rows at a multiple of 16 bytes
  const float *outer_norm_weight, *outer_norm_bias;  // of the embeddings (norm after), or of the last block's output
  Layer layers[kMaxLayers];
};

/// Whether encode_sequence() takes sequences of up to max_length tokens of such a model on this device.
bool can_encode_sequence(const TransformerConfig& config, int64_t max_length, size_t max_shared_bytes);
/// Most dynamic shared memory of a block on the current device; 0 where there are no clusters of blocks (compute
/// capabilities below 9.0).
size_t encoder_shared_bytes();

/// The parameters of the layers and norms, in the order in which the kernel takes them. packed [packed_encoder_bytes]
/// = , at a multiple of 16 bytes.
int64_t packed_encoder_bytes(const SequenceEncoder& encoder);
void pack_encoder(Context& context, const SequenceEncoder& encoder, char* packed);

/// Words of a request, in memory of the host that the device can read, and where kernels after this one read them.
struct CopiedWords {
  const int32_t* from = nullptr;
  int32_t* to = nullptr;
  int count = 0;  // at most kMaxCopiedWords
};
inline constexpr int kMaxCopiedWords = 1536;

/// Memory of the device that a kernel after this one reads: meanwhile it is fetched into the second-level cache.
struct FetchedBytes {
  const void* from = nullptr;  // at a multiple of 16 bytes
  int64_t count = 0;
};
/// How many bytes the cache keeps until then, on the current device.
size_t fetchable_bytes();

/// The last row of the last hidden state.
///   packed: of pack_encoder(); encoder.positions has max_length rows at least
///   length [1] in [1, max_length], ids [max_length], those beyond the length of any value; both in memory that the
///   device can read, of the host too; query [d] =
void encode_sequence(Context& context, const SequenceEncoder& encoder, const char* packed, int64_t max_length,
                     const int32_t* length, const int32_t* ids, bf16* query, const CopiedWords& copied = {},
                     const FetchedBytes& fetched = {});

}  // namespace limbeck::cuda
