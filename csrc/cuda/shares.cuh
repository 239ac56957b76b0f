// How blocks and warps share out the chunks of a table.
#pragma once

#include "running.cuh"
#include "table.h"

namespace weibull {
namespace cuda {

// The last row that begins at or before a chunk: the one that holds it, since a row without entries
// begins where the next one does.
__device__ __forceinline__ int row_of(const Table& table, int chunk) {
    int low = 0, high = table.size;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table.rows[middle].first_chunk <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// Calls take(index of the row, first, last) for the stretch of chunks [first, last) of each tensor that this
// block has a part of. A block takes neighbours: it changes tensors rarely.
template <class Take>
__device__ __forceinline__ void for_each_stretch(const Table& table, const Take& take) {
    const int begin = int(int64_t(table.chunks) * blockIdx.x / gridDim.x);
    const int end = int(int64_t(table.chunks) * (blockIdx.x + 1) / gridDim.x);
    int row = begin < end ? row_of(table, begin) : 0;
    for (int first = begin; first < end; ++row) {
        const int stop = int(table.rows[row].first_chunk) + table.rows[row].chunks();
        const int last = stop < end ? stop : end;
        if (last > first) take(row, first, last);
        first = last > first ? last : first;
    }
}

// The first chunk at or after `first` whose turn is this warp's. Turns go round through all chunks
// of the grid, so that many small tensors keep all warps at work.
template <int kWarps>
__device__ __forceinline__ int first_of_warp(int first) {
    static_assert((kWarps & (kWarps - 1)) == 0, "turns go round in powers of two");
    return first + ((int(threadIdx.x) / kWarp - first) & (kWarps - 1));
}

// Where a chunk of a row begins, and how many entries it has.
struct Span {
    int64_t begin;
    int count;

    __device__ Span(const Row& row, int chunk) : begin((chunk - row.first_chunk) * kChunk) {
        const int64_t rest = row.numel - begin;
        count = int(rest < kChunk ? rest : kChunk);
    }
};

constexpr int kCombining = 512;  // threads that add the partial sums of a tensor

// What the lane `lanes` further on holds.
template <class Part>
__device__ __forceinline__ Part from_lane_above(const Part& part, int lanes) {
    uint64_t words[sizeof(Part) / 8];
    memcpy(words, &part, sizeof part);
#pragma unroll
    for (uint64_t& word : words) word = __shfl_down_sync(kEveryLane, word, lanes);
    Part above;
    memcpy(&above, words, sizeof above);
    return above;
}

// The partial sums of a row, added in an order that its chunks alone decide; for the first thread.
template <class Part>
__device__ Part combined(const Part* partials, const Row& row) {
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    Part total;
#pragma unroll 2
    for (int chunk = thread; chunk < row.chunks(); chunk += kCombining)
        total.add(partials[row.first_chunk + chunk]);
    for (int lanes = kWarp / 2; lanes; lanes /= 2) total.add(from_lane_above(total, lanes));
    __shared__ uint64_t of_warps[kCombining / kWarp][sizeof(Part) / 8];
    if (lane == 0) memcpy(of_warps[warp], &total, sizeof total);
    __syncthreads();
    for (int other = 1; thread == 0 && other < kCombining / kWarp; ++other) {
        Part part;
        memcpy(&part, of_warps[other], sizeof part);
        total.add(part);
    }
    return total;
}

}  // namespace cuda
}  // namespace weibull
