#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

namespace weibull {
namespace {

// Below this many entries a thread costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 16;

// A thread that the system refuses is done without: the others take its share.
void run_on_threads(int threads, const std::function<void()>& work) {
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

}  // namespace

void share_chunks(const std::vector<Chunk>& chunks, int threads, const std::function<void(const Take&)>& work,
                  size_t batch) {
    int64_t entries = 0;
    for (const Chunk& chunk : chunks) entries += chunk.count;
    const int64_t useful = 1 + entries / kEntriesPerThread;
    std::atomic<size_t> next{0};
    const Take take = [&](size_t& first, size_t& last) {
        first = next.fetch_add(batch);
        last = std::min(first + batch, chunks.size());
        return first < last;
    };
    run_on_threads(int(std::min<int64_t>(std::max(threads, 1), useful)), [&] { work(take); });
}

}  // namespace weibull
