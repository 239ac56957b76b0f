// What one pass over a tensor and its moments adds up.
#pragma once

#include <cstdint>

#include "columns.h"

namespace weibull {

struct Sums {
    double weight_update = 0;      // Σ w·u
    double update_sq = 0;          // Σ u²
    double weight_sq = 0;          // Σ w²
    double log_sum = 0;            // Σ ln|w|, over the finite non-zero entries
    double log_sq_sum = 0;         // Σ ln²|w|, likewise
    double max_abs = 0;            // max|w|, over the finite entries
    int64_t zero_count = 0;        // entries equal to 0
    int64_t non_finite_count = 0;  // infinities and NaN

    WK_INLINE void add(const Sums& part) {
        weight_update += part.weight_update;
        update_sq += part.update_sq;
        weight_sq += part.weight_sq;
        log_sum += part.log_sum;
        log_sq_sum += part.log_sq_sum;
        max_abs = max_abs > part.max_abs ? max_abs : part.max_abs;
        zero_count += part.zero_count;
        non_finite_count += part.non_finite_count;
    }
};

// A bin of the histogram of |w| is the exponent and the leading mantissa bits of |w| as a float32,
// rounded towards zero: 64 bins an octave over every exponent but the last, which holds no finite
// number. The first octave holds the subnormal numbers; zeros and non-finite entries are left out.
constexpr int kBinBits = 6;
constexpr int kBins = 255 << kBinBits;

}  // namespace weibull
