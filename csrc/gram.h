// The Gram matrix of a tensor's successive states, in the basis of the first and of the steps between
// neighbours: r_0 = w_0, r_i = w_i − w_{i−1}.
#pragma once

#include <vector>

#include "columns.h"

namespace weibull {

struct InstructionSet;

// Writes Σ r_i·r_j over `count` entries of the K columns w to `gram` [K, K]. It runs on the calling thread.
void gram_matrix(const std::vector<Column>& columns, int64_t count, const InstructionSet& set, double* gram);

}  // namespace weibull
