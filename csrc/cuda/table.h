// How tensors reach a kernel: a table of rows on the device, cut into chunks that blocks share out.
#pragma once

#include <cstdint>

#include "../columns.h"
#include "tuning.h"

namespace weibull {
namespace cuda {

// A tensor, in int64 columns. The order is shared with weibull_kernels/kernels/cuda.py.
struct Row {
    int64_t weight, exp_avg, exp_avg_sq;  // addresses; the moments' are 0 where there are none
    int64_t max_exp_avg_sq;               // of amsgrad, or 0
    int64_t count;                        // address of the float32 number of steps made, or 0
    int64_t numel;
    int64_t first_chunk;  // of all chunks, in the order of the rows
    int64_t group;        // the row of its hyperparameters
    int64_t place;        // its row in the ledger
    int64_t dtypes;       // a byte a column: weight, exp_avg, exp_avg_sq, max_exp_avg_sq, gradient

    WK_INLINE Dtype dtype(int column) const { return Dtype(dtypes >> (8 * column) & 0xff); }
    WK_INLINE int chunks() const { return int((numel + kChunk - 1) / kChunk); }
};
enum DtypeColumn { kOfWeight, kOfExpAvg, kOfExpAvgSq, kOfMaxExpAvgSq, kOfGrad, kDtypeColumns };

// Whether a column of a row is float64, so that the arithmetic is too.
WK_INLINE bool is_wide(const Row& row) {
    for (int column = 0; column < kDtypeColumns; ++column)
        if (row.dtype(column) == Dtype::kFloat64) return true;
    return false;
}

struct Table {
    const Row* rows;
    const int32_t* row_of_chunk;
    int size;
    int chunks;  // of all rows: 2^31 of them are 2^46 entries
};

}  // namespace cuda
}  // namespace weibull
