// One step of AdamW apart from its entries: the numbers they are stepped with, and how the sums over
// them become forces in a ledger. The same for every device, in double precision.
#pragma once

#include <cmath>

#include "columns.h"
#include "sums.h"

namespace weibull {

// What a param group is set to, a row of `HYPERPARAMETERS` in weibull_kernels/kernels/interface.py.
struct Hyperparameters {
    double lr;
    double decay_factor;  // c of w⁺ = c·w − η·u, as torch rounds it
    double beta1, beta2, eps;
    double sign;                 // of the gradient: −1 to maximize
    double float32_corrections;  // not 0: 1 − βᵗ was rounded to float32
};

// A tensor's row in the ledger, `LEDGER_COLUMNS` in weibull_kernels/kernels/interface.py.
struct LedgerRow {
    double alignment, injection, decay, coupling;  // summed over the steps of the interval
    double change;                                 // likewise, Δ‖w‖² as measured
    double steps;                                  // in the interval
    double norm_sq_start, norm_sq;                 // ‖w‖² before the interval and now
    double log_sum, log_sq_sum, max_abs, zero_count, non_finite_count;  // of the weights now
    double step;                                                        // the optimizer's count
};

// ⟨w,u⟩, ‖u‖² and ‖w‖² before the step, the rest after it; and Σ(w⁺−w)(w⁺+w), entry by entry.
struct StepSums : Sums {
    double change = 0;

    WK_INLINE void add(const StepSums& part) {
        Sums::add(part);
        change += part.change;
    }
};

// The bias corrections of the t-th step.
struct Corrections {
    double root;   // √(1−β₂ᵗ), by which ε is multiplied for the raw update
    double scale;  // √(1−β₂ᵗ)/(1−β₁ᵗ), by which the raw update becomes torch's
};

WK_INLINE double correction(double beta, double step, bool in_float32) {
    return in_float32 ? double(1.0f - powf(float(beta), float(step))) : 1 - pow(beta, step);
}

WK_INLINE Corrections corrections_of(const Hyperparameters& set, double step) {
    const bool in_float32 = set.float32_corrections != 0;
    const double root = sqrt(correction(set.beta2, step, in_float32));
    return {root, root / correction(set.beta1, step, in_float32)};
}

// Adds the forces of one step to an interval. `sums` are of the raw update.
WK_INLINE void book(LedgerRow& row, const StepSums& sums, const Hyperparameters& set, double scale,
                    double step) {
    const double lost = 1 - set.decay_factor;
    const double weight_update = scale * sums.weight_update, update_sq = scale * scale * sums.update_sq;
    if (row.steps == 0) row.norm_sq_start = sums.weight_sq;
    row.alignment += -2 * set.lr * weight_update;
    row.injection += set.lr * set.lr * update_sq;
    row.decay += -2 * lost * sums.weight_sq;
    row.coupling += lost * (2 * set.lr * weight_update + lost * sums.weight_sq);
    row.change += sums.change;
    row.norm_sq = sums.weight_sq + sums.change;
    row.log_sum = sums.log_sum;
    row.log_sq_sum = sums.log_sq_sum;
    row.max_abs = sums.max_abs;
    row.zero_count = double(sums.zero_count);
    row.non_finite_count = double(sums.non_finite_count);
    row.steps += 1;
    row.step = step;
}

// The row of a step that has just been made, from sums with the weights after it: with only w⁺ left,
// ⟨w,u⟩ = (⟨w⁺,u⟩ + η‖u‖²)/c and ‖w‖² = (‖w⁺‖² + 2η⟨w⁺,u⟩ + η²‖u‖²)/c². A tensor that has made no
// step has no forces.
WK_INLINE LedgerRow row_after_step(const Sums& sums, const Hyperparameters& set, double step) {
    LedgerRow row{};
    StepSums before;
    before.Sums::add(sums);
    const double c = set.decay_factor, lr = set.lr, after = sums.weight_sq;
    const double scale = step > 0 ? corrections_of(set, step).scale : 0;
    if (step > 0) {
        const double weight_update = scale * sums.weight_update, update_sq = scale * scale * sums.update_sq;
        before.weight_sq = (after + 2 * lr * weight_update + lr * lr * update_sq) / (c * c);
        before.weight_update = (sums.weight_update + lr * scale * sums.update_sq) / c;
    }
    book(row, before, set, scale, step);
    row.norm_sq = after;
    if (step > 0) return row;
    row.alignment = row.injection = row.decay = row.coupling = row.steps = 0;
    return row;
}

}  // namespace weibull
