#include "sums.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "histogram.h"

namespace weibull {
namespace {

struct Chunk {
    int64_t tensor, begin, count;
};

// One list over all tensors: a loop per tensor would pay for the threads once a tensor.
std::vector<Chunk> chunks_of(const std::vector<Tensor>& tensors) {
    std::vector<Chunk> chunks;
    for (size_t t = 0; t < tensors.size(); ++t)
        for (int64_t begin = 0; begin < tensors[t].numel; begin += kChunk)
            chunks.push_back({int64_t(t), begin, std::min(kChunk, tensors[t].numel - begin)});
    return chunks;
}

// While this lives, subnormal numbers are numbers on x86: torch.set_flush_denormal(True) in the
// training loop must not change what is measured. A new thread inherits its creator's setting.
class SubnormalsKept {
#if defined(__x86_64__)
    static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    unsigned before_ = _mm_getcsr();

public:
    SubnormalsKept() { _mm_setcsr(before_ & ~(kFlushToZero | kDenormalsAreZero)); }
    ~SubnormalsKept() { _mm_setcsr(before_); }
#else
public:
    SubnormalsKept() {}
#endif
    SubnormalsKept(const SubnormalsKept&) = delete;
    SubnormalsKept& operator=(const SubnormalsKept&) = delete;
};

// Chunks a thread takes at a time: neighbours in memory, and rare enough to count with an atomic.
constexpr int64_t kBatch = 16;

// Below this many entries a thread costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 16;

// Runs work() on `threads` threads, this one among them. A thread that the system refuses is
// done without: the others take its share. An exception reaches the caller when all are done.
template <class Work>
void run_on_threads(int threads, const Work& work) {
    std::mutex mutex;
    std::exception_ptr failure;
    const auto guarded = [&] {
        try {
            work();
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(std::max(threads - 1, 0));
    try {
        for (int i = 1; i < threads; ++i) helpers.emplace_back(guarded);
    } catch (const std::exception&) {
    }
    guarded();
    for (std::thread& helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

void add(Sums& total, const Sums& part) {
    total.weight_update += part.weight_update;
    total.update_sq += part.update_sq;
    total.weight_sq += part.weight_sq;
    total.log_sum += part.log_sum;
    total.log_sq_sum += part.log_sq_sum;
    total.max_abs = std::max(total.max_abs, part.max_abs);
    total.zero_count += part.zero_count;
    total.non_finite_count += part.non_finite_count;
}

}  // namespace

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> sets;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) sets.push_back({"avx512", avx512::sum_chunk});
    if (avx2) sets.push_back({"avx2", avx2::sum_chunk});
#endif
    sets.push_back({"portable", portable::sum_chunk});
    return sets;
}

std::vector<Sums> sum_tensors(const std::vector<Tensor>& tensors, int64_t* histograms,
                              const InstructionSet& set, int threads) {
    const std::vector<Chunk> chunks = chunks_of(tensors);
    std::vector<Sums> partials(chunks.size());
    int64_t entries = 0;
    for (const Tensor& tensor : tensors) entries += tensor.numel;
    const int64_t useful = 1 + entries / kEntriesPerThread;

    std::atomic<int64_t> next{0};
    const int64_t count = int64_t(chunks.size());
    const auto work = [&] {
        SubnormalsKept kept;
        Histogram histogram;
        for (;;) {
            const int64_t first = next.fetch_add(kBatch);
            if (first >= count) break;
            for (int64_t i = first; i < std::min(first + kBatch, count); ++i) {
                const Chunk& chunk = chunks[i];
                const Tensor& tensor = tensors[chunk.tensor];
                partials[i] = set.sum_chunk(tensor, chunk.begin, chunk.count);
                if (histograms) {
                    histogram.add(tensor.weight, chunk.begin, chunk.count, histograms + chunk.tensor * kBins,
                                  chunk.count == tensor.numel);
                }
            }
        }
        histogram.flush();
    };
    run_on_threads(int(std::min<int64_t>(std::max(threads, 1), useful)), work);

    // In the order of the chunks, so that the total is the same whoever did what.
    std::vector<Sums> totals(tensors.size());
    for (int64_t i = 0; i < count; ++i) add(totals[chunks[i].tensor], partials[i]);
    for (size_t t = 0; t < tensors.size(); ++t) {
        totals[t].weight_update *= tensors[t].update_scale;
        totals[t].update_sq *= tensors[t].update_scale * tensors[t].update_scale;
    }
    return totals;
}

}  // namespace weibull
