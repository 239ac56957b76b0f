// The mathematics of one entry for plain numbers: what a thread of a GPU computes, and what the tests
// compute on a CPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../columns.h"

namespace weibull {
namespace scalar {

// Each rounds once, to the nearest, subnormal numbers among them: nvcc's own operators may be told
// otherwise, these not.
#if defined(__CUDA_ARCH__)
WK_INLINE float square_root(float a) { return __fsqrt_rn(a); }
WK_INLINE double square_root(double a) { return __dsqrt_rn(a); }
WK_INLINE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
WK_INLINE double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
WK_INLINE float square_root(float a) { return std::sqrt(a); }
WK_INLINE double square_root(double a) { return std::sqrt(a); }
WK_INLINE float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
WK_INLINE double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
#endif

WK_INLINE float negated(float a) { return -a; }
WK_INLINE double negated(double a) { return -a; }
WK_INLINE double to_double(float a) { return a; }
WK_INLINE double to_double(double a) { return a; }

template <class To, class From>
WK_INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class To, class From>
WK_INLINE To convert(From from) {
    return To(from);
}

template <int kBits, class Int>
WK_INLINE Int shift_right(Int a) {
    return a >> kBits;
}

template <int kBits, class Int>
WK_INLINE Int shift_left(Int a) {
    return a << kBits;
}

#include "../entry.h"

}  // namespace scalar
}  // namespace weibull
