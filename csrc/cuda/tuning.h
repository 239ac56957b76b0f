// The sizes of the kernels, chosen by measurement: benchmarks/tune_cuda.py tries others, and
// benchmarks/results keeps what it found.
#pragma once

namespace weibull {
namespace cuda {

// Threads of a block, and blocks that must fit on a multiprocessor together: with the registers that
// leaves to a thread, nothing is spilled.
constexpr int kSumThreads = 128, kSumBlocks = 5;
constexpr int kStepThreads = 128, kStepBlocks = 3;

// Bytes of a pack of float32, or of float64: what a thread takes of a column at a time.
constexpr int kPackBytes = 32;

// Entries of a partial sum, all taken by one warp. It belongs to a chunk, so that the number of blocks
// changes nothing in the result. Small, because what a warp is left with at the end is a chunk or two.
constexpr int kChunk = 4096;

}  // namespace cuda
}  // namespace weibull
