#pragma once

#include "cuda/cublas_lt.h"

namespace limbeck::cuda {

/// How a product is cut: a tile of C for each block, whose results are written while the next tile is multiplied.
struct ProductTile {
  lt::Tile id;
  int64_t columns, rows;  // of our row-major C
  double speed;           // of multiplications, as a multiple of that of 128 × 128
  uint32_t custom_option;
  lt::ClusterShape cluster;
};

/// The tile that is faster on Hopper than what the library would choose; null: none is known to be.
///   num_multiprocessors  of the device
const ProductTile* preferred_tile(const Product& product, int num_multiprocessors);

}  // namespace limbeck::cuda
