// How tensors reach the kernels: columns of memory.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WK_INLINE __host__ __device__ __forceinline__
#else
#define WK_INLINE inline __attribute__((always_inline))
#endif

namespace weibull {

// How an entry is stored. The numbers are shared with weibull_kernels/kernels/host.py.
enum class Dtype : int64_t { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

// One column of memory: a tensor's entries, or nothing (data == nullptr).
struct Column {
    void* data;
    Dtype dtype;
};

}  // namespace weibull
