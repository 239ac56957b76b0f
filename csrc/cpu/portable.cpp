// The chunk loops on 16-byte registers, which every processor of note has. It has no fused
// multiply-add: the last bits of the logarithms differ from those of AVX2 and AVX-512.
#include <cstring>

#include "instruction_sets.h"

#define WK_VECTOR_BYTES 16

namespace weibull {
namespace portable {

typedef float Floats __attribute__((vector_size(16)));
typedef float HalfFloats __attribute__((vector_size(8)));
typedef double Doubles __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef int64_t Longs __attribute__((vector_size(16)));
typedef uint32_t UnsignedInts __attribute__((vector_size(16)));
typedef uint64_t UnsignedLongs __attribute__((vector_size(16)));

template <class Vector>
WK_INLINE Vector fused_multiply_add(Vector a, Vector b, Vector c) {
    return a * b + c;
}
WK_INLINE Floats root(Floats a) {
    return Floats{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
}
WK_INLINE Doubles root(Doubles a) { return Doubles{__builtin_sqrt(a[0]), __builtin_sqrt(a[1])}; }
WK_INLINE Ints unsigned_max(Ints a, Ints b) { return (UnsignedInts)a > (UnsignedInts)b ? a : b; }
WK_INLINE Longs unsigned_max(Longs a, Longs b) { return (UnsignedLongs)a > (UnsignedLongs)b ? a : b; }
WK_INLINE Doubles lower_to_double(Floats a) {
    return __builtin_convertvector((HalfFloats{a[0], a[1]}), Doubles);
}
WK_INLINE Doubles upper_to_double(Floats a) {
    return __builtin_convertvector((HalfFloats{a[2], a[3]}), Doubles);
}
WK_INLINE Doubles read_as_double(const float* from) { return Doubles{double(from[0]), double(from[1])}; }
WK_INLINE Doubles read_as_double(const double* from) { return Doubles{from[0], from[1]}; }

#include "lanes.h"
#include "../entry.h"
#include "blocks.h"
#include "running.h"
#include "sum_chunk.h"
#include "adamw_chunk.h"
#include "gram_chunk.h"
#include "normal_product_chunk.h"

}  // namespace portable
}  // namespace weibull
