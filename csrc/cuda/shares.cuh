// How blocks share out the chunks of a table, and how what they find is put together.
#pragma once

#include "running.cuh"
#include "table.h"

namespace weibull {
namespace cuda {

// Partial sums belong to a warp of a chunk, never to a block, so that the number of blocks changes
// nothing in the result.
template <class Part>
__device__ __forceinline__ Part* part_of(Part* partials, int chunk) {
    return partials + int64_t(chunk) * kWarps + threadIdx.x / kWarp;
}

// Calls enter(row, index of the row) when the block comes to another tensor whose arithmetic is T, and
// take(row, chunk, first entry, entries) for each of its chunks. Blocks go through the chunks side by side:
// what they read at a time lies together, and memory is faster at that than at as many places as blocks.
template <class T, class Enter, class Take>
__device__ __forceinline__ void for_each_chunk(const Table& table, const Enter& enter, const Take& take) {
    int entered = -1;
    for (int chunk = blockIdx.x; chunk < table.chunks; chunk += gridDim.x) {
        const int index = table.row_of_chunk[chunk];
        const Row& row = table.rows[index];
        if (is_wide(row) != (sizeof(T) == 8)) continue;
        if (index != entered) enter(row, index);
        entered = index;
        const int64_t begin = (chunk - row.first_chunk) * kChunk, rest = row.numel - begin;
        take(row, chunk, begin, int(rest < kChunk ? rest : kChunk));
    }
}

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

// The partial sums of a row, added in an order that the row alone decides; for the first thread.
template <class Part>
__device__ Part combined(const Part* partials, const Row& row) {
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    Part total;
    partials += row.first_chunk * kWarps;
#pragma unroll 2
    for (int part = thread; part < row.chunks() * kWarps; part += kCombining) total.add(partials[part]);
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
