// The sums over the entries of tensors and their moments, read once.
#pragma once

#include <vector>

#include "../columns.h"
#include "../sums.h"

namespace weibull {

// One tensor with its AdamW moments. Without moments only the weight is read.
struct Tensor {
    Column weight, exp_avg, exp_avg_sq;
    int64_t numel;
    double scaled_eps;    // ε·√(1−β₂ᵗ)
    double update_scale;  // √(1−β₂ᵗ)/(1−β₁ᵗ)
};

struct InstructionSet;

// One pass over all tensors by `threads` threads. `histograms` is null or holds kBins zeroed
// counts for each tensor.
std::vector<Sums> sum_tensors(const std::vector<Tensor>& tensors, int64_t* histograms,
                              const InstructionSet& set, int threads);

}  // namespace weibull
