#include "forces.h"

#include "sums.h"

namespace weibull {

std::vector<LedgerRow> forces_of(const std::vector<Measured>& tensors, int64_t* histograms,
                                 const InstructionSet& set, int threads) {
    std::vector<Tensor> read(tensors.size());
    for (size_t t = 0; t < tensors.size(); ++t) {
        const Measured& tensor = tensors[t];
        read[t].weight = tensor.weight;
        read[t].numel = tensor.numel;
        read[t].update_scale = 1;  // the row is made from sums of the raw update
        if (tensor.step > 0) {
            read[t].exp_avg = tensor.exp_avg;
            read[t].exp_avg_sq = tensor.exp_avg_sq;
            read[t].scaled_eps = tensor.set.eps * corrections_of(tensor.set, tensor.step).root;
        }
    }
    const std::vector<Sums> sums = sum_tensors(read, histograms, set, threads);
    std::vector<LedgerRow> rows(tensors.size());
    for (size_t t = 0; t < tensors.size(); ++t) {
        // Without entries there is no memory to tell by; the count does.
        const bool stepped = tensors[t].exp_avg.data || tensors[t].numel == 0;
        rows[t] = row_after_step(sums[t], tensors[t].set, stepped ? tensors[t].step : 0);
    }
    return rows;
}

}  // namespace weibull
