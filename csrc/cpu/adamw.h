// A step of AdamW over all tensors at once, which leaves its sums in a ledger.
#pragma once

#include <vector>

#include "../columns.h"
#include "../step.h"

namespace weibull {

// One tensor about to be stepped.
struct Stepped {
    Column weight, grad, exp_avg, exp_avg_sq;
    Column max_exp_avg_sq;  // of amsgrad, or nothing
    int64_t numel;
    float* step;        // how often it has been stepped
    LedgerRow* ledger;  // or null
    Hyperparameters set;
};

// What every entry of a tensor is stepped with, worked out once in double precision.
struct StepNumbers {
    double grad_scale, sign;
    double beta1, beta2;
    double scaled_eps;    // ε·√(1−β₂ᵗ)
    double update_scale;  // √(1−β₂ᵗ)/(1−β₁ᵗ), by which the raw update becomes torch's
    double rate;          // η·√(1−β₂ᵗ)/(1−β₁ᵗ), of the raw update
    double decay_factor;
    bool unscales;  // the gradient is divided by grad_scale and written back so
};

struct InstructionSet;

// Steps all tensors by `threads` threads. A gradient scaler's numbers are null where there is no
// scaler; where *found_inf is set nothing happens.
void step_tensors(const std::vector<Stepped>& tensors, const float* grad_scale, const float* found_inf,
                  const InstructionSet& set, int threads);

}  // namespace weibull
