#include "adamw.h"

#include <cmath>

#include "instruction_sets.h"
#include "threads.h"

namespace weibull {
namespace {

StepNumbers numbers_of(const Hyperparameters& set, double step, const float* grad_scale) {
    const double root = std::sqrt(1 - std::pow(set.beta2, step));
    StepNumbers numbers;
    numbers.unscales = grad_scale != nullptr;
    numbers.grad_scale = grad_scale ? *grad_scale : 1;
    numbers.sign = set.sign;
    numbers.beta1 = set.beta1;
    numbers.beta2 = set.beta2;
    numbers.scaled_eps = set.eps * root;
    numbers.update_scale = root / (1 - std::pow(set.beta1, step));
    numbers.rate = set.lr * numbers.update_scale;
    numbers.decay_factor = set.decay_factor;
    return numbers;
}

// The forces of one step, from the sums before it, into the interval's.
void book(LedgerRow& row, const StepSums& sums, const Hyperparameters& set, double scale, double step) {
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

}  // namespace

void step_tensors(const std::vector<Stepped>& tensors, const float* grad_scale, const float* found_inf,
                  const InstructionSet& set, int threads) {
    if (found_inf && *found_inf != 0) return;
    const std::vector<Chunk> chunks = chunks_of(tensors);
    std::vector<StepSums> partials(chunks.size()), totals(tensors.size());
    std::vector<StepNumbers> numbers(tensors.size());
    for (size_t t = 0; t < tensors.size(); ++t) {
        *tensors[t].step += 1;
        numbers[t] = numbers_of(tensors[t].set, *tensors[t].step, grad_scale);
    }
    share_chunks(chunks, threads, [&](const Take& take) {
        for (size_t first, last; take(first, last);) {
            for (size_t i = first; i < last; ++i) {
                const Chunk& chunk = chunks[i];
                partials[i] =
                    set.step_chunk(tensors[chunk.tensor], numbers[chunk.tensor], chunk.begin, chunk.count);
            }
        }
    });

    // In the order of the chunks, so that the total is the same whoever did what.
    for (size_t i = 0; i < chunks.size(); ++i) {
        StepSums& total = totals[chunks[i].tensor];
        total.add(partials[i]);
        total.change += partials[i].change;
    }
    for (size_t t = 0; t < tensors.size(); ++t)
        if (tensors[t].ledger)
            book(*tensors[t].ledger, totals[t], tensors[t].set, numbers[t].update_scale, *tensors[t].step);
}

}  // namespace weibull
