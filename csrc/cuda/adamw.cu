// A step of AdamW on all tensors at once, in place, which leaves its sums in a ledger.
#include "device.cuh"
#include "launch.h"
#include "shares.cuh"
#include "step_chunk.cuh"

namespace weibull {
namespace cuda {
namespace {

// All chunks of the rows whose arithmetic is T.
template <class T, bool kBooks>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? kStepBlocks : 1)
    step_chunks(Table table, Step step, StepSums* partials) {
    if (step.found_inf && *step.found_inf != 0) return;
    Numbers<T> numbers;
    for_each_chunk<T>(
        table,
        [&](const Row& row, int) {
            numbers = Numbers<T>(step.sets[row.group], next_count(row), step.grad_scale);
        },
        [&](const Row& row, int chunk, int64_t begin, int count) {
            const int64_t grad = step.grads[table.row_of_chunk[chunk]];
            const StepSums sums = step_chunk<T, kBooks>(StepColumns(row, grad, begin), count, numbers,
                                                        step.grad_scale != nullptr);
            if (kBooks && threadIdx.x % kWarp == 0) *part_of(partials, chunk) = sums;
        });
}

// Counts the step of one tensor, and books it.
__global__ void __launch_bounds__(kCombining)
    finish_steps(Table table, Step step, const StepSums* partials, LedgerRow* ledger) {
    if (step.found_inf && *step.found_inf != 0) return;
    const Row& row = table.rows[blockIdx.x];
    const float count = next_count(row);
    StepSums total;
    if (ledger) total = combined(partials, row);
    if (threadIdx.x) return;
    const Hyperparameters& set = step.sets[row.group];
    if (ledger) book(ledger[row.place], total, set, corrections_of(set, count).scale, count);
    *reinterpret_cast<float*>(row.count) = count;
}

template <class T, bool kBooks>
void launch_chunks(const Launch& launch, const Table& table, const Step& step, StepSums* partials) {
    step_chunks<T, kBooks><<<blocks_of(launch, table), kThreads, 0, launch.stream>>>(table, step, partials);
    check(cudaGetLastError(), "the step cannot be launched");
}

}  // namespace

void launch_adamw(const Launch& launch, const Table& table, const Step& step, bool any_wide, bool any_narrow,
                  StepSums* partials, LedgerRow* ledger) {
    if (table.size == 0) return;
    const OnDevice on(launch.device);
    const auto launch_float = ledger ? launch_chunks<float, true> : launch_chunks<float, false>;
    const auto launch_double = ledger ? launch_chunks<double, true> : launch_chunks<double, false>;
    if (any_narrow) launch_float(launch, table, step, partials);
    if (any_wide) launch_double(launch, table, step, partials);
    finish_steps<<<unsigned(table.size), kCombining, 0, launch.stream>>>(table, step, partials, ledger);
    check(cudaGetLastError(), "the end of the step cannot be launched");
}

}  // namespace cuda
}  // namespace weibull
