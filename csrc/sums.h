// What one pass over a tensor returns, and what a chunk of it is.
#pragma once

#include <cstdint>
#include <vector>

#define WK_INLINE inline __attribute__((always_inline))

namespace weibull {

// How an entry is stored. The numbers are shared with weibull_kernels/kernels/cpu.py.
enum class Dtype : int64_t { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

// One column of memory: a tensor's entries, or nothing (data == nullptr).
struct Column {
    const void* data;
    Dtype dtype;
};

// One tensor with its AdamW moments. Without moments only the weight is read.
struct Tensor {
    Column weight, exp_avg, exp_avg_sq;
    int64_t numel;
    double scaled_eps;    // ε·√(1−β₂ᵗ)
    double update_scale;  // √(1−β₂ᵗ)/(1−β₁ᵗ)
};

struct Sums {
    double weight_update = 0;      // Σ w·u
    double update_sq = 0;          // Σ u²
    double weight_sq = 0;          // Σ w²
    double log_sum = 0;            // Σ ln|w|, over the finite non-zero entries
    double log_sq_sum = 0;         // Σ ln²|w|, likewise
    double max_abs = 0;            // max|w|, over the finite entries
    int64_t zero_count = 0;        // entries equal to 0
    int64_t non_finite_count = 0;  // infinities and NaN
};

// Partial sums belong to a chunk, never to a thread: the total does not depend on who did what.
constexpr int64_t kChunk = 16384;

// Adds up the entries [begin, begin + count) of `tensor`. One for each instruction set.
using ChunkFunction = Sums (*)(const Tensor& tensor, int64_t begin, int64_t count);

namespace portable {
Sums sum_chunk(const Tensor&, int64_t, int64_t);
}
#if defined(__x86_64__)
namespace avx2 {
Sums sum_chunk(const Tensor&, int64_t, int64_t);
}
namespace avx512 {
Sums sum_chunk(const Tensor&, int64_t, int64_t);
}
#endif

struct InstructionSet {
    const char* name;
    ChunkFunction sum_chunk;
};

// Those this processor runs, the widest first.
std::vector<InstructionSet> instruction_sets();

// One pass over all tensors by `threads` threads. `histograms` is null or holds kBins zeroed
// counts for each tensor.
std::vector<Sums> sum_tensors(const std::vector<Tensor>& tensors, int64_t* histograms,
                              const InstructionSet& set, int threads);

}  // namespace weibull
