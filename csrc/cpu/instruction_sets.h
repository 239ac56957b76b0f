// The chunk loops, compiled once for each instruction set and chosen at run time.
#pragma once

#include <string>
#include <vector>

#include "adamw.h"
#include "gram.h"
#include "normal_product.h"
#include "sums.h"

namespace weibull {

// They take the entries [begin, begin + count) of a tensor. gram_chunk adds to the lower triangle of gram
// [size, size], moves_chunk to moves [size, 2]; they work in as many bytes as their workspace says.
// normal_product_chunk takes the rows [begin, end) of a matrix and adds to the products of `slices` times
// kVectors vectors; for where they lie see place_of. The vectors are of the numbers that it works in.
#define WK_CHUNK_LOOPS                                                                                   \
    Sums sum_chunk(const Tensor&, int64_t begin, int64_t count);                                         \
    StepSums step_chunk(const Stepped&, const StepNumbers&, int64_t begin, int64_t count);               \
    int64_t gram_workspace(int64_t size);                                                                \
    void gram_chunk(const Column* columns, int64_t size, int64_t begin, int64_t count, void* workspace,  \
                    double* gram);                                                                       \
    int64_t moves_workspace(int64_t size);                                                               \
    void moves_chunk(const Column* columns, int64_t size, int64_t begin, int64_t count, void* workspace, \
                     double* moves);                                                                     \
    int64_t normal_product_workspace(const Matrix&, int64_t slices);                                     \
    void normal_product_chunk(const Matrix&, const void* vectors, int64_t slices, int64_t begin,         \
                              int64_t end, void* workspace, double* product);

namespace portable {
WK_CHUNK_LOOPS
}
#if defined(__x86_64__)
namespace avx2 {
WK_CHUNK_LOOPS
}
namespace avx512 {
WK_CHUNK_LOOPS
}
#endif

struct InstructionSet {
    const char* name;
    decltype(&portable::sum_chunk) sum_chunk;
    decltype(&portable::step_chunk) step_chunk;
    decltype(&portable::gram_workspace) gram_workspace;
    decltype(&portable::gram_chunk) gram_chunk;
    decltype(&portable::moves_workspace) moves_workspace;
    decltype(&portable::moves_chunk) moves_chunk;
    decltype(&portable::normal_product_workspace) normal_product_workspace;
    decltype(&portable::normal_product_chunk) normal_product_chunk;
};

// Those this processor runs, the widest first.
std::vector<InstructionSet> instruction_sets();

// The one of that name; std::invalid_argument if this processor does not run it.
InstructionSet find_instruction_set(const std::string& name);

}  // namespace weibull
