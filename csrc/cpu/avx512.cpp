// The chunk loops on 64-byte registers.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "instruction_sets.h"

#define WK_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#include "target_begin.h"

#define WK_VECTOR_BYTES 64

namespace weibull {
namespace avx512 {

using Floats = __m512;
using Doubles = __m512d;
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));

WK_INLINE Floats fused_multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
WK_INLINE Doubles fused_multiply_add(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
WK_INLINE Floats root(Floats a) { return _mm512_sqrt_ps(a); }
WK_INLINE Doubles root(Doubles a) { return _mm512_sqrt_pd(a); }
WK_INLINE Ints unsigned_max(Ints a, Ints b) { return (Ints)_mm512_max_epu32((__m512i)a, (__m512i)b); }
WK_INLINE Longs unsigned_max(Longs a, Longs b) { return (Longs)_mm512_max_epu64((__m512i)a, (__m512i)b); }
WK_INLINE Doubles lower_to_double(Floats a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
WK_INLINE Doubles upper_to_double(Floats a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
WK_INLINE Doubles read_as_double(const float* from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
WK_INLINE Doubles read_as_double(const double* from) { return _mm512_loadu_pd(from); }

#include "lanes.h"
#include "../entry.h"
#include "blocks.h"
#include "running.h"
#include "sum_chunk.h"
#include "adamw_chunk.h"
#include "gram_chunk.h"
#include "normal_product_chunk.h"

}  // namespace avx512
}  // namespace weibull

#include "target_end.h"

#endif
