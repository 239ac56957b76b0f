// Inner products of a tensor's successive states w_0, w_1, … and of the steps between neighbours.
#pragma once

#include <vector>

#include "../columns.h"

namespace weibull {

struct InstructionSet;

// Both run over `count` entries of the K columns w, on the calling thread.

// Writes the Gram matrix Σ r_i·r_j of the basis r_0 = w_0, r_i = w_i − w_{i−1} to `gram` [K, K].
void gram_matrix(const std::vector<Column>& columns, int64_t count, const InstructionSet& set, double* gram);

// Writes ‖w_i‖² and ‖w_i − w_{i−1}‖², the latter 0 for the first, to `moves` [K, 2].
void column_moves(const std::vector<Column>& columns, int64_t count, const InstructionSet& set,
                  double* moves);

}  // namespace weibull
