#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/thread_pool.h"

namespace limbeck {

// Halko et al. 2011 (arXiv:0909.4061) §4.2: five to ten extra directions are enough; §4.5: a few power iterations for a
// slow spectrum.
constexpr int64_t kOversampling = 10;
constexpr int kPowerIterations = 7;

/// Orthonormal rows by modified Gram–Schmidt, twice because the rows may be nearly dependent; a row without a direction
/// of its own is replaced by a random one.
///   q [num_rows, num_columns] num_rows ≤ num_columns, lengths [num_rows] scratch
void orthonormalise_rows(ThreadPool& pool, double* q, int64_t num_rows, int64_t num_columns, double* lengths,
                         uint64_t seed);

/// direction [num_columns] = normal random numbers, a function of the seed, the row of the subspace that they are for,
/// and the attempt: 0 to start from, others where a row without a direction of its own is replaced.
void random_direction(double* direction, int64_t num_columns, uint64_t seed, int64_t row, uint64_t attempt);

/// q [num_rows, num_columns] = random orthonormal rows, a function of the seed.
void random_directions(ThreadPool& pool, double* q, int64_t num_rows, int64_t num_columns, double* lengths,
                       uint64_t seed);

/// Rayleigh–Ritz: coordinates in an orthonormal basis of the principal axes inside its span, largest first.
///   gram [size, size] basis·XᵀX·basisᵀ, symmetric but for rounding
///   eigenvalues [num_axes] = of XᵀX; rotation [num_axes, size] = axes are rotation·basis
/// Throws Error("ERR_NOT_FINITE") where the gram is not finite.
void principal_rotation(Arena& scratch, const double* gram, int64_t size, int64_t num_axes, double* eigenvalues,
                        double* rotation);

/// to [count] = ±axis, the largest absolute entry positive.
void fix_sign(const double* axis, int64_t count, float* to);

/// Rayleigh–Ritz: the principal axes inside the span of `basis`, largest first. Signs are fixed: the largest absolute
/// entry of each axis is positive.
///   gram [size, size] basis·XᵀX·basisᵀ, symmetric but for rounding; basis [size, num_columns] orthonormal rows
///   eigenvalues [num_axes] = of XᵀX; axes [num_axes, num_columns] =
void principal_axes(Arena& scratch, const double* gram, const double* basis, int64_t size, int64_t num_columns,
                    int64_t num_axes, double* eigenvalues, float* axes);

}  // namespace limbeck
