#include "gram.h"

#include <algorithm>

#include "instruction_sets.h"
#include "subnormals.h"
#include "threads.h"

namespace weibull {
namespace {

// What chunks are worked out in, aligned for every register.
struct alignas(64) CacheLine {
    double numbers[8];
};

}  // namespace

void gram_matrix(const std::vector<Column>& columns, int64_t count, const InstructionSet& set, double* gram) {
    const SubnormalsKept kept;
    const int64_t size = columns.size();
    std::vector<CacheLine> workspace(set.gram_workspace(size) / sizeof(CacheLine));
    std::fill(gram, gram + size * size, 0.0);
    for (int64_t begin = 0; begin < count; begin += kChunk)
        set.gram_chunk(columns.data(), size, begin, std::min(kChunk, count - begin), workspace.data(), gram);
    for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < i; ++j) gram[j * size + i] = gram[i * size + j];
}

void column_moves(const std::vector<Column>& columns, int64_t count, const InstructionSet& set,
                  double* moves) {
    const SubnormalsKept kept;
    const int64_t size = columns.size();
    std::vector<CacheLine> workspace(set.moves_workspace(size) / sizeof(CacheLine));
    std::fill(moves, moves + size * 2, 0.0);
    for (int64_t begin = 0; begin < count; begin += kChunk)
        set.moves_chunk(columns.data(), size, begin, std::min(kChunk, count - begin), workspace.data(),
                        moves);
}

}  // namespace weibull
