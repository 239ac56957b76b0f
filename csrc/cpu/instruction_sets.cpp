#include "instruction_sets.h"

#include <stdexcept>

namespace weibull {

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> sets;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512)
        sets.push_back({"avx512", avx512::sum_chunk, avx512::step_chunk, avx512::gram_workspace,
                        avx512::gram_chunk, avx512::moves_workspace, avx512::moves_chunk,
                        avx512::normal_product_workspace, avx512::normal_product_chunk});
    if (avx2)
        sets.push_back({"avx2", avx2::sum_chunk, avx2::step_chunk, avx2::gram_workspace, avx2::gram_chunk,
                        avx2::moves_workspace, avx2::moves_chunk, avx2::normal_product_workspace,
                        avx2::normal_product_chunk});
#endif
    sets.push_back({"portable", portable::sum_chunk, portable::step_chunk, portable::gram_workspace,
                    portable::gram_chunk, portable::moves_workspace, portable::moves_chunk,
                    portable::normal_product_workspace, portable::normal_product_chunk});
    return sets;
}

InstructionSet find_instruction_set(const std::string& name) {
    std::string known;
    for (const InstructionSet& set : instruction_sets()) {
        if (name == set.name) return set;
        known += std::string(known.empty() ? "" : ", ") + set.name;
    }
    throw std::invalid_argument("this processor does not run instruction set '" + name +
                                "'; it runs: " + known);
}

}  // namespace weibull
