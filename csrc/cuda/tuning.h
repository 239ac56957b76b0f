// The sizes of the kernels, chosen by measurement: benchmarks/tune_cuda.py tries others, and
// benchmarks/results keeps what it found.
#pragma once

namespace weibull {
namespace cuda {

// Threads of a block, and blocks that must fit on a multiprocessor together: with the registers that
// leaves to a thread, nothing is spilled.
constexpr int kThreads = 128;
constexpr int kSumBlocks = 5, kStepBlocks = 3;

// Bytes of a pack of float32, or of float64: what a thread takes of a column at a time.
constexpr int kPackBytes = 32;

// Entries of a chunk, which one block takes at a time.
constexpr int kChunk = 8192;

}  // namespace cuda
}  // namespace weibull
