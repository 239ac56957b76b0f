// One pass over tensors and their moments: the sums of every chunk, then of every tensor.
#include "device.cuh"
#include "launch.h"
#include "shares.cuh"
#include "sum_chunk.cuh"

namespace weibull {
namespace cuda {
namespace {

__device__ __forceinline__ double scaled_eps_of(const UpdateNumbers& numbers, const Row& row, int index) {
    if (numbers.scaled_eps) return numbers.scaled_eps[index];
    const double step = row.count ? *reinterpret_cast<const float*>(row.count) : 0;
    if (step == 0) return 1;
    const Hyperparameters& set = numbers.sets[row.group];
    return set.eps * corrections_of(set, step).root;
}

// Adds the window to a row of the histogram and empties it.
__device__ void flush(unsigned* window, unsigned long long* row) {
    __syncthreads();
    for (int i = threadIdx.x; i < kWindow; i += kThreads) {
        if (row && window[i]) atomicAdd(row + kFirstBin + i, static_cast<unsigned long long>(window[i]));
        window[i] = 0;
    }
    __syncthreads();
}

// All chunks of the rows whose arithmetic is T.
template <class T, bool kHistogram>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1
                                            : kHistogram   ? kCountBlocks
                                                           : kSumBlocks)
    sum_chunks(Table table, UpdateNumbers numbers, Sums* partials, unsigned long long* histograms) {
    __shared__ unsigned window[kHistogram ? kWindow : 1];
    Bins bins{window, nullptr};
    T scaled_eps = 0;
    for_each_chunk<T>(
        table,
        [&](const Row& row, int index) {
            if (kHistogram) flush(window, bins.row);
            bins.row = histograms + int64_t(index) * kBins;
            scaled_eps = T(scaled_eps_of(numbers, row, index));
        },
        [&](const Row& row, int chunk, int64_t begin, int count) {
            const Sums sums = sum_chunk<T, kHistogram>(SumColumns(row, begin), count, scaled_eps, bins);
            if (threadIdx.x % kWarp == 0) *part_of(partials, chunk) = sums;
        });
    if (kHistogram) flush(window, bins.row);
}

// The sums of one tensor, [8] double: of the update as torch has it where `scales` says by how much.
__global__ void __launch_bounds__(kCombining)
    combine_sums(Table table, const Sums* partials, const double* scales, double* sums) {
    const Sums total = combined(partials, table.rows[blockIdx.x]);
    if (threadIdx.x) return;
    const double scale = scales[blockIdx.x];
    double* row = sums + int64_t(blockIdx.x) * kSumColumns;
    row[0] = scale * total.weight_update;
    row[1] = scale * scale * total.update_sq;
    row[2] = total.weight_sq;
    row[3] = total.log_sum;
    row[4] = total.log_sq_sum;
    row[5] = total.max_abs;
    row[6] = double(total.zero_count);
    row[7] = double(total.non_finite_count);
}

// The forces of one tensor's last step.
__global__ void __launch_bounds__(kCombining)
    combine_forces(Table table, const Sums* partials, const Hyperparameters* sets, LedgerRow* ledger) {
    const Row& row = table.rows[blockIdx.x];
    const Sums total = combined(partials, row);
    if (threadIdx.x) return;
    const double step = row.count ? *reinterpret_cast<const float*>(row.count) : 0;
    ledger[blockIdx.x] = row_after_step(total, sets[row.group], step);
}

template <class T, bool kHistogram>
void launch_chunks(const Launch& launch, const Table& table, const UpdateNumbers& numbers, Sums* partials,
                   unsigned long long* histograms) {
    sum_chunks<T, kHistogram>
        <<<blocks_of(launch, table), kThreads, 0, launch.stream>>>(table, numbers, partials, histograms);
    check(cudaGetLastError(), "the sums of the chunks cannot be launched");
}

void launch_all_chunks(const Launch& launch, const Table& table, const UpdateNumbers& numbers, bool any_wide,
                       bool any_narrow, Sums* partials, unsigned long long* histograms) {
    const auto launch_float = histograms ? launch_chunks<float, true> : launch_chunks<float, false>;
    const auto launch_double = histograms ? launch_chunks<double, true> : launch_chunks<double, false>;
    if (any_narrow) launch_float(launch, table, numbers, partials, histograms);
    if (any_wide) launch_double(launch, table, numbers, partials, histograms);
}

}  // namespace

void launch_sums(const Launch& launch, const Table& table, const UpdateNumbers& numbers, bool any_wide,
                 bool any_narrow, Sums* partials, const double* scales, double* sums,
                 unsigned long long* histograms) {
    if (table.size == 0) return;
    const OnDevice on(launch.device);
    launch_all_chunks(launch, table, numbers, any_wide, any_narrow, partials, histograms);
    combine_sums<<<unsigned(table.size), kCombining, 0, launch.stream>>>(table, partials, scales, sums);
    check(cudaGetLastError(), "the sums of the tensors cannot be launched");
}

void launch_forces(const Launch& launch, const Table& table, const Hyperparameters* sets, bool any_wide,
                   bool any_narrow, Sums* partials, LedgerRow* ledger, unsigned long long* histograms) {
    if (table.size == 0) return;
    const OnDevice on(launch.device);
    launch_all_chunks(launch, table, {nullptr, sets}, any_wide, any_narrow, partials, histograms);
    combine_forces<<<unsigned(table.size), kCombining, 0, launch.stream>>>(table, partials, sets, ledger);
    check(cudaGetLastError(), "the forces of the tensors cannot be launched");
}

}  // namespace cuda
}  // namespace weibull
