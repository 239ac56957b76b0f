// The running sums of one thread, and of a warp over its chunk.
#pragma once

#include <type_traits>

#include "../step.h"
#include "packs.cuh"
#include "table.h"

namespace weibull {
namespace cuda {

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

// Where a block counts the entries of a tensor.
struct Bins {
    unsigned* window;
    unsigned long long* row;

    // One that the window holds.
    __device__ __forceinline__ void count_inside(int bin) const { atomicAdd(window + (bin - kFirstBin), 1u); }
    // Any finite one that is not 0.
    __device__ __forceinline__ void count(int bin) const {
        if (bin >= kFirstBin && bin < kFirstBin + kWindow)
            count_inside(bin);
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
    T lost_ep = 0;  // what roundings took from logs.ep, the largest of the sums that are not whole
    Unsigned largest = 0;
    int zero_count = 0, non_finite_count = 0;

    // Some neighbours. Less the smallest usual number and unsigned, every entry that is not usual is
    // large: one maximum tells whether there are any. Usual are the normal numbers; with a histogram those
    // in its window.
    template <bool kHistogram, int kCount>
    __device__ __forceinline__ void add(const T (&weight)[kCount], const Bins& bins) {
        constexpr Bits kSmallest = kHistogram ? lower_edge(kFirstBin) : F::kSmallestNormal;
        constexpr Bits kBeyond = kHistogram ? lower_edge(kFirstBin + kWindow) : F::kInfinity;
        Unsigned top = 0;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const Unsigned above = Unsigned(magnitude(weight[i])) - Unsigned(kSmallest);
            top = above > top ? above : top;
        }
        if (top >= Unsigned(kBeyond) - Unsigned(kSmallest)) {
#pragma unroll
            for (int i = 0; i < kCount; ++i) add_any<kHistogram>(weight[i], bins);
            return;
        }
        top += kSmallest;
        largest = top > largest ? top : largest;
        scalar::Logs<T> together;  // first: of equal entries one by one, the roundings would add up
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            together.template add<T>(magnitude(weight[i]), Bits(0));
            if (kHistogram) bins.count_inside(bin_of(weight[i]));
        }
        add_logs(together);
    }

private:
    // The bits of the smallest number in a bin.
    static constexpr WK_INLINE Bits lower_edge(int bin) {
        return sizeof(T) == 4 ? Bits(bin) << (23 - kBinBits)
                              : Bits(bin + ((1023 - 127) << kBinBits)) << (52 - kBinBits) % (8 * sizeof(T));
    }

    static __device__ __forceinline__ Bits magnitude(T weight) {
        return scalar::bit_cast<Bits>(weight) & F::kMagnitude;
    }

    __device__ __forceinline__ void add_logs(const scalar::Logs<T>& part) {
        logs.e += part.e;
        logs.e_sq += part.e_sq;
        logs.p += part.p;
        logs.p_sq += part.p_sq;
        const T ep = logs.ep + part.ep;
        lost_ep += part.ep - (ep - logs.ep);
        logs.ep = ep;
    }

    // A subnormal is its bits, read as an integer, times 2^-149 (2^-1074).
    template <bool kHistogram>
    __device__ __forceinline__ void add_any(T weight, const Bins& bins) {
        const Bits bits = magnitude(weight);
        const bool is_zero = bits == 0, is_finite = bits < F::kInfinity;
        const bool is_subnormal = !is_zero && bits < F::kSmallestNormal;
        zero_count += is_zero;
        non_finite_count += !is_finite;
        if (is_zero || !is_finite) return;
        if (Unsigned(bits) > largest) largest = Unsigned(bits);
        scalar::Logs<T> alone;
        alone.template add<T>(is_subnormal ? scalar::bit_cast<Bits>(T(bits)) : bits,
                              is_subnormal ? Bits(F::kSubnormalExponent) : Bits(0));
        add_logs(alone);
        if (kHistogram) bins.count(bin_of(weight));
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
    logs.ep += of_lane.lost_ep;
    sums.log_sum = over_warp(scalar::log_sum(logs));
    sums.log_sq_sum = over_warp(scalar::log_sq_sum(logs));
    sums.max_abs = double(scalar::bit_cast<T>(largest_of_warp(of_lane.largest)));
    sums.zero_count = over_warp(of_lane.zero_count);
    sums.non_finite_count = over_warp(of_lane.non_finite_count);
}

}  // namespace cuda
}  // namespace weibull
