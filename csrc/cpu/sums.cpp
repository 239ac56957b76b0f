#include "sums.h"

#include "histogram.h"
#include "instruction_sets.h"
#include "subnormals.h"
#include "threads.h"

namespace weibull {

std::vector<Sums> sum_tensors(const std::vector<Tensor>& tensors, int64_t* histograms,
                              const InstructionSet& set, int threads) {
    const std::vector<Chunk> chunks = chunks_of(tensors);
    std::vector<Sums> partials(chunks.size());
    share_chunks(chunks, threads, [&](const Take& take) {
        SubnormalsKept kept;
        Histogram histogram;
        for (size_t first, last; take(first, last);) {
            for (size_t i = first; i < last; ++i) {
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
    });

    // In the order of the chunks, so that the total is the same whoever did what.
    std::vector<Sums> totals(tensors.size());
    for (size_t i = 0; i < chunks.size(); ++i) totals[chunks[i].tensor].add(partials[i]);
    for (size_t t = 0; t < tensors.size(); ++t) {
        totals[t].weight_update *= tensors[t].update_scale;
        totals[t].update_sq *= tensors[t].update_scale * tensors[t].update_scale;
    }
    return totals;
}

}  // namespace weibull
