// What tests/test_cuda_on_cpu.py calls in place of the extension of csrc/cuda: the code of one thread, on
// this processor, for all threads of a block and all chunks of each tensor in turn. Here stands again what
// the kernels in sums.cu and adamw.cu do around it, but for the sharing out of the work.
//
// Each function takes a table of rows and returns how many accesses of memory a GPU would have refused.
#include "cuda_on_cpu.h"

#include "../csrc/cuda/step_chunk.cuh"
#include "../csrc/cuda/sum_chunk.cuh"

namespace {

using namespace weibull;
using namespace weibull::cuda;

// Lets the kernels reach the columns of a tensor, and nothing else.
void open_memory(const Row& row, int64_t grad) {
    const int64_t columns[kDtypeColumns] = {row.weight, row.exp_avg, row.exp_avg_sq, row.max_exp_avg_sq,
                                            grad};
    memory.columns.clear();
    for (int i = 0; i < kDtypeColumns; ++i) {
        if (!columns[i]) continue;
        const Memory column(columns[i], row.dtype(i), 0);
        memory.columns.push_back({reinterpret_cast<uintptr_t>(column.data),
                                  reinterpret_cast<uintptr_t>(column.at(int(row.numel)))});
    }
}

// Calls take(first entry, entries) for every thread of every chunk.
template <class Take>
void for_each_thread(const Row& row, const Take& take) {
    for (int64_t begin = 0; begin < row.numel; begin += kChunk) {
        const int64_t rest = row.numel - begin;
        for (threadIdx.x = 0; threadIdx.x < unsigned(kThreads); ++threadIdx.x)
            take(begin, int(rest < kChunk ? rest : kChunk));
    }
}

template <class T, bool kHistogram>
Sums sums_of(const Row& row, double scaled_eps, unsigned long long* histogram) {
    std::vector<unsigned> window(kWindow);
    const Bins bins{window.data(), histogram};
    Sums total;
    for_each_thread(row, [&](int64_t begin, int count) {
        total.add(sum_chunk<T, kHistogram>(SumColumns(row, begin), count, T(scaled_eps), bins));
    });
    for (int i = 0; histogram && i < kWindow; ++i) histogram[kFirstBin + i] += window[i];
    return total;
}

Sums sums_of(const Row& row, double scaled_eps, unsigned long long* histogram) {
    open_memory(row, 0);
    if (is_wide(row))
        return histogram ? sums_of<double, true>(row, scaled_eps, histogram)
                         : sums_of<double, false>(row, scaled_eps, nullptr);
    return histogram ? sums_of<float, true>(row, scaled_eps, histogram)
                     : sums_of<float, false>(row, scaled_eps, nullptr);
}

template <class T, bool kBooks>
StepSums stepped(const Row& row, int64_t grad, const Hyperparameters& set, const float* grad_scale) {
    const Numbers<T> numbers(set, next_count(row), grad_scale);
    StepSums total;
    for_each_thread(row, [&](int64_t begin, int count) {
        total.add(
            step_chunk<T, kBooks>(StepColumns(row, grad, begin), count, numbers, grad_scale != nullptr));
    });
    return total;
}

}  // namespace

extern "C" {

int64_t chunk() { return kChunk; }
int64_t row_columns() { return sizeof(Row) / sizeof(int64_t); }

// `sums` is [size, 8], `histograms` [size, kBins] or null.
int64_t sums(const Row* rows, int size, const double* scaled_eps, const double* scales, double* sums,
             unsigned long long* histograms) {
    memory.faults = 0;
    for (int i = 0; i < size; ++i) {
        const Sums found =
            sums_of(rows[i], scaled_eps[i], histograms ? histograms + int64_t(i) * kBins : nullptr);
        const double columns[8] = {scales[i] * found.weight_update,
                                   scales[i] * scales[i] * found.update_sq,
                                   found.weight_sq,
                                   found.log_sum,
                                   found.log_sq_sum,
                                   found.max_abs,
                                   double(found.zero_count),
                                   double(found.non_finite_count)};
        memcpy(sums + i * 8, columns, sizeof columns);
    }
    return memory.faults;
}

int64_t forces(const Row* rows, int size, const Hyperparameters* sets, LedgerRow* ledger,
               unsigned long long* histograms) {
    memory.faults = 0;
    for (int i = 0; i < size; ++i) {
        const Hyperparameters& set = sets[rows[i].group];
        const double step = *reinterpret_cast<const float*>(rows[i].count);
        const double scaled_eps = step == 0 ? 1 : set.eps * corrections_of(set, step).root;
        const Sums found =
            sums_of(rows[i], scaled_eps, histograms ? histograms + int64_t(i) * kBins : nullptr);
        ledger[i] = row_after_step(found, set, step);
    }
    return memory.faults;
}

int64_t adamw(const Row* rows, int size, const int64_t* grads, const Hyperparameters* sets,
              const float* grad_scale, LedgerRow* ledger) {
    memory.faults = 0;
    for (int i = 0; i < size; ++i) {
        const Row& row = rows[i];
        const Hyperparameters& set = sets[row.group];
        const auto step = is_wide(row) ? (ledger ? stepped<double, true> : stepped<double, false>)
                                       : (ledger ? stepped<float, true> : stepped<float, false>);
        open_memory(row, grads[i]);
        const StepSums found = step(row, grads[i], set, grad_scale);
        const float count = next_count(row);
        if (ledger) book(ledger[row.place], found, set, corrections_of(set, count).scale, count);
        *reinterpret_cast<float*>(row.count) = count;
    }
    return memory.faults;
}

}  // extern "C"
