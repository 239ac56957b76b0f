// The sizes of the kernels, chosen by measurement: benchmarks/tune_cuda.py tries others, and
// benchmarks/results/tuning-cuda-nvidia-h200.md keeps what an H200 said of them (those of Triton are in
// tuning-triton-nvidia-h100-80gb-hbm3.md beside it). For other architectures they are made to fit.
#pragma once

namespace weibull {
namespace cuda {

// Threads of a block, and blocks that must fit on a multiprocessor together: with the registers that
// leaves to a thread, nothing is spilled. Sums, sums with the histogram, step.
constexpr int kThreads = 128, kWarp = 32, kWarps = kThreads / kWarp;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kSumBlocks = 7, kCountBlocks = 7, kStepBlocks = 3;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kSumBlocks = 10, kCountBlocks = 6, kStepBlocks = 4;
#else
constexpr int kSumBlocks = 10, kCountBlocks = 7, kStepBlocks = 4;
#endif

// Bytes of a pack of float32, or of float64: what a thread takes of a column at a time.
constexpr int kSumPackBytes = 16, kStepPackBytes = 32;

// Entries of a chunk, which one block takes at a time.
constexpr int kChunk = 32768;

}  // namespace cuda
}  // namespace weibull
