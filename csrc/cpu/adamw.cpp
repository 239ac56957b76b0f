#include "adamw.h"

#include "instruction_sets.h"
#include "threads.h"

namespace weibull {
namespace {

StepNumbers numbers_of(const Hyperparameters& set, double step, const float* grad_scale) {
    const Corrections corrections = corrections_of(set, step);
    StepNumbers numbers;
    numbers.unscales = grad_scale != nullptr;
    numbers.grad_scale = grad_scale ? *grad_scale : 1;
    numbers.sign = set.sign;
    numbers.beta1 = set.beta1;
    numbers.beta2 = set.beta2;
    numbers.scaled_eps = set.eps * corrections.root;
    numbers.update_scale = corrections.scale;
    numbers.rate = set.lr * numbers.update_scale;
    numbers.decay_factor = set.decay_factor;
    return numbers;
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
    for (size_t i = 0; i < chunks.size(); ++i) totals[chunks[i].tensor].add(partials[i]);
    for (size_t t = 0; t < tensors.size(); ++t)
        if (tensors[t].ledger)
            book(*tensors[t].ledger, totals[t], tensors[t].set, numbers[t].update_scale, *tensors[t].step);
}

}  // namespace weibull
