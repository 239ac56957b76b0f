// What one thread does with its part of a chunk: reads it and adds it up.
#pragma once

#include "running.cuh"

namespace weibull {
namespace cuda {

// What is read of a tensor from an entry on: of amsgrad's second moments the largest.
struct SumColumns {
    Memory weight, exp_avg, exp_avg_sq;
    bool has_moments, aligned;

    __device__ SumColumns(const Row& row, int64_t begin)
        : weight(row.weight, row.dtype(kOfWeight), begin),
          exp_avg(row.exp_avg, row.dtype(kOfExpAvg), begin),
          exp_avg_sq(row.max_exp_avg_sq ? row.max_exp_avg_sq : row.exp_avg_sq,
                     row.dtype(row.max_exp_avg_sq ? kOfMaxExpAvgSq : kOfExpAvgSq), begin),
          has_moments(row.exp_avg != 0),
          aligned(((row.weight | row.exp_avg | row.exp_avg_sq | row.max_exp_avg_sq) & 15) == 0) {}

    __device__ __forceinline__ SumColumns in_loop() const {
        SumColumns same = *this;
        for (Memory* column : {&same.weight, &same.exp_avg, &same.exp_avg_sq}) *column = column->in_loop();
        same.has_moments = hidden(has_moments);
        return same;
    }
};

// The running sums of a thread.
template <class T, bool kHistogram>
struct RunningSums {
    scalar::Squares<double> squares;
    Statistics<T> statistics;

    // With some neighbours more.
    template <class How>
    __device__ __forceinline__ void add(const SumColumns& at, int i, T scaled_eps, const Bins& bins) {
        constexpr int kCount = How::kCount;
        T w[kCount], m[kCount], v[kCount];
        const auto weight = fetch<T, How, Use::kRead>(at.weight, i);
        if (at.has_moments) {
            const auto exp_avg = fetch<T, How, Use::kRead>(at.exp_avg, i),
                       exp_avg_sq = fetch<T, How, Use::kRead>(at.exp_avg_sq, i);
            widen(exp_avg, m);
            widen(exp_avg_sq, v);
        }
        widen(weight, w);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            if (at.has_moments)
                squares.add(double(w[k]), double(scalar::raw_update(m[k], v[k], scaled_eps)));
            else
                squares.add(double(w[k]));
        }
        statistics.template add<kHistogram>(w, bins);
    }
};

// One chunk of a tensor; the sums are those of the warp.
template <class T, bool kHistogram>
__device__ __forceinline__ Sums sum_chunk(const SumColumns& columns, int count, T scaled_eps,
                                          const Bins& bins) {
    RunningSums<T, kHistogram> running;
    constexpr int kPack = kSumPackBytes / sizeof(T), kLoose = kPack;
    for_each_pack<kPack, kLoose>(columns, count, [&](auto how, const SumColumns& at, int i) {
        running.template add<decltype(how)>(at, i, scaled_eps, bins);
    });
    Sums sums;
    finish(running.squares, running.statistics, sums);
    return sums;
}

}  // namespace cuda
}  // namespace weibull
