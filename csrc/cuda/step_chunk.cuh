// What one thread does with its part of a chunk: steps it in memory and adds up what the step did.
#pragma once

#include "running.cuh"

namespace weibull {
namespace cuda {

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
struct StepColumns {
    Memory weight, grad, exp_avg, exp_avg_sq, max_exp_avg_sq;
    bool amsgrad, aligned;

    __device__ StepColumns(const Row& row, int64_t grad, int64_t begin)
        : weight(row.weight, row.dtype(kOfWeight), begin),
          grad(grad, row.dtype(kOfGrad), begin),
          exp_avg(row.exp_avg, row.dtype(kOfExpAvg), begin),
          exp_avg_sq(row.exp_avg_sq, row.dtype(kOfExpAvgSq), begin),
          max_exp_avg_sq(row.max_exp_avg_sq, row.dtype(kOfMaxExpAvgSq), begin),
          amsgrad(row.max_exp_avg_sq != 0),
          aligned(((row.weight | grad | row.exp_avg | row.exp_avg_sq | row.max_exp_avg_sq) & 15) == 0) {}

    __device__ __forceinline__ StepColumns in_loop() const {
        StepColumns same = *this;
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
    template <class How>
    __device__ __forceinline__ void step(const StepColumns& at, int i, const Numbers<T>& n, bool unscales) {
        constexpr int kCount = How::kCount;
        T w[kCount], g[kCount], m[kCount], v[kCount], u[kCount], before[kCount];
        {
            const auto weight = fetch<T, How, Use::kChange>(at.weight, i),
                       grad = fetch<T, How, Use::kChange>(at.grad, i);
            const auto exp_avg = fetch<T, How, Use::kChange>(at.exp_avg, i),
                       exp_avg_sq = fetch<T, How, Use::kChange>(at.exp_avg_sq, i);
            widen(grad, g);
            widen(exp_avg, m);
            widen(exp_avg_sq, v);
            widen(weight, w);
        }
        if (unscales) {
            T kept[kCount];
#pragma unroll
            for (int k = 0; k < kCount; ++k) kept[k] = g[k] = g[k] / n.grad_scale;
            put<T, How>(at.grad, i, kept);
        }
#pragma unroll
        for (int k = 0; k < kCount; ++k) scalar::step_moments(n, g[k] * n.sign, m[k], v[k]);
        put_copy<How>(at.exp_avg, i, m);
        put_copy<How>(at.exp_avg_sq, i, v);
        if (at.amsgrad) {
            T largest[kCount];
            widen(fetch<T, How, Use::kChange>(at.max_exp_avg_sq, i), largest);
#pragma unroll
            for (int k = 0; k < kCount; ++k) v[k] = larger(largest[k], v[k]);
            put_copy<How>(at.max_exp_avg_sq, i, v);
        }
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            u[k] = scalar::raw_update(m[k], v[k], n.scaled_eps);
            before[k] = w[k];
            w[k] = scalar::step_weight(n, w[k], u[k]);
        }
        put<T, How>(at.weight, i, w);
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
    template <class How>
    static __device__ __forceinline__ void put_copy(const Memory& to, int i, const T (&from)[How::kCount]) {
        T kept[How::kCount];
#pragma unroll
        for (int k = 0; k < How::kCount; ++k) kept[k] = from[k];
        put<T, How>(to, i, kept);
    }
};

// One chunk of a tensor stepped; the sums are those of the warp, where it books.
template <class T, bool kBooks>
__device__ __forceinline__ StepSums step_chunk(const StepColumns& columns, int count, const Numbers<T>& n,
                                               bool unscales) {
    RunningStep<T, kBooks> running;
    constexpr int kPack = kStepPackBytes / sizeof(T), kLoose = 2;  // larger ones would spill
    for_each_pack<kPack, kLoose>(columns, count, [&](auto how, const StepColumns& at, int i) {
        running.template step<decltype(how)>(at, i, n, hidden(unscales));
    });
    StepSums sums;
    if constexpr (kBooks) {
        finish(running.squares, running.statistics, sums);
        sums.change = over_warp(running.change);
    }
    return sums;
}

}  // namespace cuda
}  // namespace weibull
