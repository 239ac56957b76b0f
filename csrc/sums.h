// The sums over the entries of a tensor and its moments, read once.
#pragma once

#include <vector>

#include "columns.h"

namespace weibull {

// One tensor with its AdamW moments. Without moments only the weight is read.
struct Tensor {
    Column weight, exp_avg, exp_avg_sq;
    int64_t numel;
    double scaled_eps;    // ε·√(1−β₂ᵗ)
    double update_scale;  // √(1−β₂ᵗ)/(1−β₁ᵗ)
};

struct Sums {
    double weight_update = 0;      // Σ w·u
    double update_sq = 0;          // Σ u²
    double weight_sq = 0;          // Σ w²
    double log_sum = 0;            // Σ ln|w|, over the finite non-zero entries
    double log_sq_sum = 0;         // Σ ln²|w|, likewise
    double max_abs = 0;            // max|w|, over the finite entries
    int64_t zero_count = 0;        // entries equal to 0
    int64_t non_finite_count = 0;  // infinities and NaN

    void add(const Sums& part);
};

struct InstructionSet;

// One pass over all tensors by `threads` threads. `histograms` is null or holds kBins zeroed
// counts for each tensor.
std::vector<Sums> sum_tensors(const std::vector<Tensor>& tensors, int64_t* histograms,
                              const InstructionSet& set, int threads);

}  // namespace weibull
