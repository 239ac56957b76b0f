// The chunks of all tensors, shared out among threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace weibull {

// Partial sums belong to a chunk, never to a thread: the total does not depend on who did what.
constexpr int64_t kChunk = 16384;

// Chunks of kChunk entries a thread takes at a time: neighbours in memory, and rare enough to count with an
// atomic.
constexpr size_t kBatch = 16;

struct Chunk {
    int64_t tensor, begin, count;
};

// One list over all tensors: a loop per tensor would pay for the threads once a tensor.
template <class Tensors>
std::vector<Chunk> chunks_of(const Tensors& tensors) {
    std::vector<Chunk> chunks;
    for (size_t t = 0; t < tensors.size(); ++t) {
        const int64_t numel = tensors[t].numel;
        for (int64_t begin = 0; begin < numel; begin += kChunk)
            chunks.push_back({int64_t(t), begin, numel - begin < kChunk ? numel - begin : kChunk});
    }
    return chunks;
}

// Calls work(take) on up to `threads` threads, this one among them; each takes batches [first, last)
// of chunks by take(first, last) until that is false. An exception reaches the caller when all are done.
using Take = std::function<bool(size_t& first, size_t& last)>;
void share_chunks(const std::vector<Chunk>& chunks, int threads, const std::function<void(const Take&)>& work,
                  size_t batch = kBatch);

}  // namespace weibull
