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

// The running sums of a thread: products before the step, statistics after it.
template <class T, bool kBooks>
struct RunningStep {
    scalar::Squares<double> squares;
    Statistics<T> statistics;
    double change = 0;

    // Steps some neighbours in memory, and adds them.
    template <int kCount>
    __device__ __forceinline__ void step(const Columns& at, int i, const Numbers<T>& n, bool unscales) {
        T w[kCount], g[kCount], m[kCount], v[kCount], u[kCount], before[kCount];
        {
            const auto weight = fetch<T, kCount, Use::kChange>(at.weight, i),
                       grad = fetch<T, kCount, Use::kChange>(at.grad, i);
            const auto exp_avg = fetch<T, kCount, Use::kChange>(at.exp_avg, i),
                       exp_avg_sq = fetch<T, kCount, Use::kChange>(at.exp_avg_sq, i);
            widen(grad, g);
            widen(exp_avg, m);
            widen(exp_avg_sq, v);
            widen(weight, w);
        }
        if (unscales) {
            T kept[kCount];
#pragma unroll
            for (int k = 0; k < kCount; ++k) kept[k] = g[k] = g[k] / n.grad_scale;
            put(at.grad, i, kept);
        }
#pragma unroll
        for (int k = 0; k < kCount; ++k) scalar::step_moments(n, g[k] * n.sign, m[k], v[k]);
        put_copy(at.exp_avg, i, m);
        put_copy(at.exp_avg_sq, i, v);
        if (at.amsgrad) {
            T largest[kCount];
            widen(fetch<T, kCount, Use::kChange>(at.max_exp_avg_sq, i), largest);
#pragma unroll
            for (int k = 0; k < kCount; ++k) v[k] = larger(largest[k], v[k]);
            put_copy(at.max_exp_avg_sq, i, v);
        }
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            u[k] = scalar::raw_update(m[k], v[k], n.scaled_eps);
            before[k] = w[k];
            w[k] = scalar::step_weight(n, w[k], u[k]);
        }
        put(at.weight, i, w);
        if constexpr (kBooks) {
#pragma unroll
            for (int k = 0; k < kCount; ++k) {
                const double from = before[k], to = w[k];
                squares.add(from, double(u[k]));
                change = scalar::multiply_add(to - from, to + from, change);
            }
            statistics.template add<false>(w, Bins{nullptr, nullptr});
        }
    }

private:
    // The update goes on from moments as they were before memory rounded them.
    template <int kCount>
    static __device__ __forceinline__ void put_copy(const Memory& to, int i, const T (&from)[kCount]) {
        T kept[kCount];
#pragma unroll
        for (int k = 0; k < kCount; ++k) kept[k] = from[k];
        put(to, i, kept);
    }
};

// One chunk of a tensor stepped; `part` is that of the warp.
template <class T, bool kBooks>
__device__ __forceinline__ void step_chunk(const Columns& columns, int count, const Numbers<T>& n,
                                           bool unscales, StepSums* part) {
    RunningStep<T, kBooks> running;
    constexpr int kPack = kStepPackBytes / sizeof(T);
    for_each_pack<kPack>(
        columns, count,
        [&](const Columns& at, int i) { running.template step<kPack>(at, i, n, hidden(unscales)); },
        [&](const Columns& at, int i) { running.template step<1>(at, i, n, hidden(unscales)); });
    if constexpr (kBooks) {
        StepSums sums;
        finish(running.squares, running.statistics, sums);
        sums.change = over_warp(running.change);
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
