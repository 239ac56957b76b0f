// The memory floor on a GPU: every byte read once by 16-byte loads, as many blocks as fit.
#include <cuda_runtime.h>

#include <cstdint>

constexpr int kThreads = 512, kLoads = 4;  // under way together in a thread

__global__ void __launch_bounds__(kThreads) read_all(const uint4* from, int64_t count, uint32_t* never) {
    const int64_t stride = int64_t(gridDim.x) * kThreads * kLoads;
    uint32_t mixed = 0;
    for (int64_t at = (int64_t(blockIdx.x) * kLoads) * kThreads + threadIdx.x; at < count; at += stride) {
        uint4 word[kLoads];
        for (int i = 0; i < kLoads; ++i)
            word[i] = at + i * kThreads < count ? __ldcs(from + at + i * kThreads) : uint4{};
        for (int i = 0; i < kLoads; ++i) mixed ^= word[i].x ^ word[i].y ^ word[i].z ^ word[i].w;
    }
    if (mixed == 0x9e3779b9u && from == nullptr) *never = mixed;  // so that the loads are made
}

// Reads `bytes`, a multiple of 16, on a stream; returns CUDA's error.
extern "C" int plain_read(const void* from, int64_t bytes, void* stream) {
    static int blocks = 0;
    if (!blocks) {
        int device = 0, processors = 0, each = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, read_all, kThreads, 0);
        blocks = processors * each;
    }
    read_all<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const uint4*>(from),
                                                                         bytes / 16, nullptr);
    return int(cudaGetLastError());
}
