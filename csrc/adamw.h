// A step of AdamW over all tensors at once, which leaves its sums in a ledger.
#pragma once

#include <vector>

#include "columns.h"
#include "sums.h"

namespace weibull {

// What a param group is set to.
struct Hyperparameters {
    double lr;
    double decay_factor;  // c of w⁺ = c·w − η·u, as torch rounds it
    double beta1, beta2, eps;
    double sign;  // of the gradient: −1 to maximize
};

// The columns of a tensor's row in the ledger, all double. The order is shared with
// weibull_kernels/kernels/interface.py.
struct LedgerRow {
    double alignment, injection, decay, coupling;  // summed over the steps of the interval
    double change;                                 // likewise, Δ‖w‖² as measured
    double steps;                                  // in the interval
    double norm_sq_start, norm_sq;                 // ‖w‖² before the interval and now
    double log_sum, log_sq_sum, max_abs, zero_count, non_finite_count;  // of the weights now
    double step;                                                        // the optimizer's count
};

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

// ⟨w,u⟩, ‖u‖² and ‖w‖² before the step, the rest after it; and Σ(w⁺−w)(w⁺+w), entry by entry.
struct StepSums : Sums {
    double change = 0;
};

struct InstructionSet;

// Steps all tensors by `threads` threads. A gradient scaler's numbers are null where there is no
// scaler; where *found_inf is set nothing happens.
void step_tensors(const std::vector<Stepped>& tensors, const float* grad_scale, const float* found_inf,
                  const InstructionSet& set, int threads);

}  // namespace weibull
