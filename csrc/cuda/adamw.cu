// A step of AdamW on all tensors at once, in place, which leaves its sums in a ledger.
#include "device.cuh"
#include "launch.h"
#include "shares.cuh"

namespace weibull {
namespace cuda {
namespace {

template <class T>
constexpr T kLargest = sizeof(T) == 4 ? T(3.4028234663852886e38) : T(1.7976931348623157e308);

// (1−loss)·x: given as the loss, a factor near 1 keeps the digits that it would lose to the 1. From an
// infinite x a finite number is taken, so that it stays what it is.
template <class T>
__device__ __forceinline__ T without(T loss, T x) {
    const T finite = x > kLargest<T> ? kLargest<T> : x < -kLargest<T> ? -kLargest<T> : x;
    return scalar::multiply_add(-loss, finite, x);
}

// What every entry of a tensor is stepped with.
template <class T>
struct Numbers {
    T grad_scale, sign, gain1, gain2, scaled_eps, rate, lost;
    bool near_mean;

    Numbers() = default;
    __device__ Numbers(const Hyperparameters& set, double step, const float* scale) {
        const Corrections corrections = corrections_of(set, step);
        grad_scale = scale ? T(*scale) : T(1);
        sign = T(set.sign);
        gain1 = T(1 - set.beta1);
        gain2 = T(1 - set.beta2);
        scaled_eps = T(set.eps * corrections.root);
        rate = T(set.lr * corrections.scale);
        lost = T(1 - set.decay_factor);
        near_mean = 1 - set.beta1 < 0.5;
    }

    __device__ __forceinline__ T faded(T v) const { return without(gain2, v); }
    __device__ __forceinline__ T decayed(T w) const { return without(lost, w); }
};

// The number of a tensor's step that is being made.
__device__ __forceinline__ float next_count(const Row& row) {
    return *reinterpret_cast<const float*>(row.count) + 1;
}

// NaN where one of them is: as torch's amsgrad.
template <class T>
__device__ __forceinline__ T larger(T a, T b) {
    return a > b || a != a ? a : b;
}

// The columns of a tensor from an entry on; that of amsgrad may be absent.
struct Columns {
    Memory weight, grad, exp_avg, exp_avg_sq, max_exp_avg_sq;
    bool amsgrad, aligned;

    __device__ Columns(const Row& row, int64_t grad, int64_t begin)
        : weight(row.weight, row.dtype(kOfWeight), begin),
          grad(grad, row.dtype(kOfGrad), begin),
          exp_avg(row.exp_avg, row.dtype(kOfExpAvg), begin),
          exp_avg_sq(row.exp_avg_sq, row.dtype(kOfExpAvgSq), begin),
          max_exp_avg_sq(row.max_exp_avg_sq, row.dtype(kOfMaxExpAvgSq), begin),
          amsgrad(row.max_exp_avg_sq != 0),
          aligned(((row.weight | grad | row.exp_avg | row.exp_avg_sq | row.max_exp_avg_sq) & 15) == 0) {}

    __device__ __forceinline__ Columns in_loop() const {
        Columns same = *this;
        for (Memory* column :
             {&same.weight, &same.grad, &same.exp_avg, &same.exp_avg_sq, &same.max_exp_avg_sq})
            *column = column->in_loop();
        same.amsgrad = hidden(amsgrad);
        return same;
    }
};

// A pack of a column, whole or its first `count` entries.
template <class T>
__device__ __forceinline__ void load(const Memory& from, int entry, bool whole, int count, T padding,
                                     T (&to)[kPack<T>]) {
    if (whole) {
        widen(load_raw<T>(from, entry), from.dtype, to);
        return;
    }
#pragma unroll
    for (int k = 0; k < kPack<T>; ++k) to[k] = k < count ? load_entry<T>(from, entry + k) : padding;
}

// The other way; what memory rounds off goes from the pack too.
template <class T>
__device__ __forceinline__ void store(const Memory& to, int entry, bool whole, int count,
                                      T (&from)[kPack<T>]) {
    const Raw raw = narrowed(from, to.dtype);
    if (whole) {
        store_raw<T>(to, entry, raw);
    } else {
#pragma unroll
        for (int k = 0; k < kPack<T>; ++k)
            if (k < count) store_entry(to, entry + k, from[k]);
    }
    widen(raw, to.dtype, from);
}

// One chunk of a tensor stepped; `part` is that of the warp.
template <class T, bool kBooks>
__device__ __forceinline__ void step_chunk(const Columns& columns, int chunk, const Numbers<T>& n,
                                           bool unscales_, StepSums* part) {
    const int aligned = columns.aligned ? chunk / kPack<T> * kPack<T> : 0;
    scalar::Squares<double> squares;
    Statistics<T> statistics;
    double change = 0;
#pragma unroll 1
    for (int i = threadIdx.x * kPack<T>; i < chunk; i += kThreads * kPack<T>) {
        const Columns at = columns.in_loop();
        const bool unscales = hidden(unscales_), whole = i < aligned;
        const int count = chunk - i;
        T w[kPack<T>], g[kPack<T>], m[kPack<T>], v[kPack<T>];
        if (whole) {
            const Raw raw_w = load_raw<T>(at.weight, i), raw_g = load_raw<T>(at.grad, i);
            const Raw raw_m = load_raw<T>(at.exp_avg, i), raw_v = load_raw<T>(at.exp_avg_sq, i);
            widen(raw_w, at.weight.dtype, w);
            widen(raw_g, at.grad.dtype, g);
            widen(raw_m, at.exp_avg.dtype, m);
            widen(raw_v, at.exp_avg_sq.dtype, v);
        } else {
            load(at.weight, i, false, count, T(0), w);
            load(at.grad, i, false, count, T(0), g);
            load(at.exp_avg, i, false, count, T(0), m);
            load(at.exp_avg_sq, i, false, count, T(1), v);
        }
        if (unscales) {
#pragma unroll
            for (int k = 0; k < kPack<T>; ++k) g[k] = g[k] / n.grad_scale;
            T stored[kPack<T>];
            memcpy(stored, g, sizeof stored);
            store(at.grad, i, whole, count, stored);
        }
#pragma unroll
        for (int k = 0; k < kPack<T>; ++k) scalar::step_moments(n, g[k] * n.sign, m[k], v[k]);
        T kept[kPack<T>];
        memcpy(kept, m, sizeof kept);
        store(at.exp_avg, i, whole, count, kept);
        memcpy(kept, v, sizeof kept);
        store(at.exp_avg_sq, i, whole, count, kept);
        if (at.amsgrad) {
            load(at.max_exp_avg_sq, i, whole, count, T(1), kept);
#pragma unroll
            for (int k = 0; k < kPack<T>; ++k) kept[k] = v[k] = larger(kept[k], v[k]);
            store(at.max_exp_avg_sq, i, whole, count, kept);
        }
        T after[kPack<T>];
#pragma unroll
        for (int k = 0; k < kPack<T>; ++k) {
            // Beyond the end nothing is held: with β₂ = ε = 0 its u would be 0/0.
            const T u = k < count ? scalar::raw_update(m[k], v[k], n.scaled_eps) : T(0);
            after[k] = scalar::step_weight(n, w[k], u);
            if (kBooks) squares.add(double(w[k]), double(u));
        }
        store(at.weight, i, whole, count, after);
        if constexpr (kBooks) {
#pragma unroll
            for (int k = 0; k < kPack<T>; ++k) {
                if (k >= count) after[k] = T(0);  // NaN where the numbers are
                const double from = w[k], to = after[k];
                change = scalar::multiply_add(to - from, to + from, change);
            }
            statistics.template add<false>(after, count, Bins{nullptr, nullptr});
        }
    }
    if constexpr (kBooks) {
        StepSums sums;
        finish(squares, statistics, sums);
        sums.change = over_warp(change);
        if (threadIdx.x % kWarp == 0) *part = sums;
    }
}

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
            step_chunk<T, kBooks>(Columns(row, grad, begin), count, numbers, step.grad_scale != nullptr,
                                  part_of(partials, chunk));
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
    const int blocks = blocks_of<step_chunks<T, kBooks>>(launch, table.chunks);
    step_chunks<T, kBooks><<<blocks, kThreads, 0, launch.stream>>>(table, step, partials);
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
