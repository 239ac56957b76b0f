// The chunk loops on 32-byte registers.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "instruction_sets.h"

#define WK_TARGET "avx2,fma"
#include "target_begin.h"

#define WK_VECTOR_BYTES 32

namespace weibull {
namespace avx2 {

using Floats = __m256;
using Doubles = __m256d;
typedef int32_t Ints __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(32)));
typedef uint64_t UnsignedLongs __attribute__((vector_size(32)));

WK_INLINE Floats fused_multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
WK_INLINE Doubles fused_multiply_add(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
WK_INLINE Floats root(Floats a) { return _mm256_sqrt_ps(a); }
WK_INLINE Doubles root(Doubles a) { return _mm256_sqrt_pd(a); }
WK_INLINE Ints unsigned_max(Ints a, Ints b) { return (Ints)_mm256_max_epu32((__m256i)a, (__m256i)b); }
WK_INLINE Longs unsigned_max(Longs a, Longs b) { return (UnsignedLongs)a > (UnsignedLongs)b ? a : b; }
WK_INLINE Doubles lower_to_double(Floats a) { return _mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
WK_INLINE Doubles upper_to_double(Floats a) { return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
WK_INLINE Doubles read_as_double(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
WK_INLINE Doubles read_as_double(const double* from) { return _mm256_loadu_pd(from); }

#include "lanes.h"
#include "../entry.h"
#include "blocks.h"
#include "running.h"
#include "sum_chunk.h"
#include "adamw_chunk.h"
#include "gram_chunk.h"
#include "normal_product_chunk.h"

}  // namespace avx2
}  // namespace weibull

#include "target_end.h"

#endif
