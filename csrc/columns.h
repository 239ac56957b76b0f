// How tensors reach the kernels: columns of memory, cut into chunks.
#pragma once

#include <cstdint>

#define WK_INLINE inline __attribute__((always_inline))

namespace weibull {

// How an entry is stored. The numbers are shared with weibull_kernels/kernels/cpu.py.
enum class Dtype : int64_t { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

// One column of memory: a tensor's entries, or nothing (data == nullptr).
struct Column {
    void* data;
    Dtype dtype;
};

// Partial sums belong to a chunk, never to a thread: the total does not depend on who did what.
constexpr int64_t kChunk = 16384;

}  // namespace weibull
