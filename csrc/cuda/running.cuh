// The running sums of one thread, and of a warp over its chunk.
#pragma once

#include <type_traits>

#include "../step.h"
#include "packs.cuh"
#include "table.h"

namespace weibull {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffffu;

// Of the histogram, the octaves 2^-26 ≤ |w| < 2^6 are counted on the chip; the rare entry beyond them
// goes straight to memory.
constexpr int kWindow = 2048;
constexpr int kFirstBin = (127 - 26) << kBinBits;

// The bin of a finite non-zero entry.
__device__ __forceinline__ int bin_of(float weight) {
    return (__float_as_int(weight) & 0x7fffffff) >> (23 - kBinBits);
}
// Rounded towards zero, so that no entry crosses the edge of a bin.
__device__ __forceinline__ int bin_of(double weight) { return bin_of(__double2float_rz(weight)); }

// Where a warp counts the entries of a tensor: null where nobody asked.
struct Bins {
    unsigned* window;
    unsigned long long* row;

    template <class T>
    __device__ __forceinline__ void count(T weight) const {
        const int bin = bin_of(weight), offset = bin - kFirstBin;
        if (unsigned(offset) < unsigned(kWindow))
            atomicAdd(window + offset, 1u);
        else
            atomicAdd(row + bin, 1ull);
    }
};

// What the weights themselves are: logarithms, extremes, counts.
template <class T>
struct Statistics {
    using Bits = scalar::Int<T>;
    using Unsigned = typename std::make_unsigned<Bits>::type;
    using F = scalar::Format<T>;

    scalar::Logs<T> logs;
    Unsigned largest = 0;
    int zero_count = 0, non_finite_count = 0;

    // The first `count` of a pack; the others are 0. Less the smallest normal number and unsigned,
    // every entry that is not normal is large: one maximum tells whether there are any.
    template <bool kHistogram>
    __device__ __forceinline__ void add(const T (&weight)[kPack<T>], int count, const Bins& bins) {
        Unsigned top = 0;
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            const Unsigned above = Unsigned(magnitude(weight[i])) - Unsigned(F::kSmallestNormal);
            top = above > top ? above : top;
        }
        if (top >= Unsigned(F::kInfinity) - Unsigned(F::kSmallestNormal)) {
            add_any<kHistogram>(weight, count, bins);
            return;
        }
        top += F::kSmallestNormal;
        largest = top > largest ? top : largest;
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            logs.template add<T>(magnitude(weight[i]), Bits(0));
            if (kHistogram) bins.count(weight[i]);
        }
    }

private:
    static __device__ __forceinline__ Bits magnitude(T weight) {
        return scalar::bit_cast<Bits>(weight) & F::kMagnitude;
    }

    // A subnormal is its bits, read as an integer, times 2^-149 (2^-1074). What has no logarithm
    // stands in as 1, whose logarithm adds nothing.
    template <bool kHistogram>
    __device__ __forceinline__ void add_any(const T (&weight)[kPack<T>], int count, const Bins& bins) {
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) {
            const Bits bits = magnitude(weight[i]);
            const bool is_zero = bits == 0, is_finite = bits < F::kInfinity, has_log = is_finite && !is_zero;
            const bool is_subnormal = has_log && bits < F::kSmallestNormal;
            zero_count += is_zero && i < count;
            non_finite_count += !is_finite;
            if (is_finite && Unsigned(bits) > largest) largest = Unsigned(bits);
            const Bits normal = is_subnormal ? scalar::bit_cast<Bits>(T(bits)) : bits;
            logs.template add<T>(has_log ? normal : Bits(F::kOne),
                                 is_subnormal ? Bits(F::kSubnormalExponent) : Bits(0));
            if (kHistogram && has_log) bins.count(weight[i]);
        }
    }
};

// Sums over the lanes of a warp, in an order that is always the same; every lane gets them.
__device__ __forceinline__ double over_warp(double value) {
    for (int lanes = kWarp / 2; lanes; lanes /= 2) value += __shfl_xor_sync(kEveryLane, value, lanes);
    return value;
}
__device__ __forceinline__ int over_warp(int value) { return __reduce_add_sync(kEveryLane, value); }
__device__ __forceinline__ uint32_t largest_of_warp(uint32_t value) {
    return __reduce_max_sync(kEveryLane, value);
}
__device__ __forceinline__ uint64_t largest_of_warp(uint64_t value) {
    for (int lanes = kWarp / 2; lanes; lanes /= 2) {
        const uint64_t other = __shfl_xor_sync(kEveryLane, value, lanes);
        value = other > value ? other : value;
    }
    return value;
}

// The sums of a warp's chunk.
template <class T>
__device__ __forceinline__ void finish(const scalar::Squares<double>& squares, const Statistics<T>& of_lane,
                                       Sums& sums) {
    sums.weight_update = over_warp(squares.weight_update);
    sums.update_sq = over_warp(squares.update_sq);
    sums.weight_sq = over_warp(squares.weight_sq);
    scalar::Logs<double> logs;
    logs.add(of_lane.logs);
    sums.log_sum = over_warp(scalar::log_sum(logs));
    sums.log_sq_sum = over_warp(scalar::log_sq_sum(logs));
    sums.max_abs = double(scalar::bit_cast<T>(largest_of_warp(of_lane.largest)));
    sums.zero_count = over_warp(of_lane.zero_count);
    sums.non_finite_count = over_warp(of_lane.non_finite_count);
}

}  // namespace cuda
}  // namespace weibull
