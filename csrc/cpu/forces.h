// The forces of a step that has just been made, from one pass over weights and moments.
#pragma once

#include <vector>

#include "../columns.h"
#include "../step.h"

namespace weibull {

// One tensor that has been stepped. Without moments, or with a count of 0, it has no forces.
struct Measured {
    Column weight, exp_avg, exp_avg_sq;  // with amsgrad the largest exp_avg_sq
    int64_t numel;
    double step;  // how often it has been stepped
    Hyperparameters set;
};

struct InstructionSet;

// A row a tensor; by `threads` threads. `histograms` is null or holds kBins zeroed counts for each tensor.
std::vector<LedgerRow> forces_of(const std::vector<Measured>& tensors, int64_t* histograms,
                                 const InstructionSet& set, int threads);

}  // namespace weibull
