// Matrices multiplied by a few vectors and then by their own transpose, read from memory once.
#pragma once

#include <vector>

#include "../columns.h"

namespace weibull {

// Vectors that are multiplied at a time; a block of others is filled up with zeros.
constexpr int64_t kVectors = 4;

// Rows of a matrix A [m, n], m = pieces·rows: entries of a row lie side by side, the rows of a piece
// `row_stride` entries apart and the pieces `piece_stride`.
struct Matrix {
    Column entries;
    int64_t pieces, rows, columns, piece_stride, row_stride;

    WK_INLINE int64_t offset(int64_t row) const {
        return row / rows * piece_stride + row % rows * row_stride;
    }
};

// Columns in the kernels, filled up to whole lanes.
WK_INLINE int64_t padded_columns(int64_t columns) { return (columns + 15) / 16 * 16; }

// Where the kernels have the sixteen entries from `column` on, a multiple of 16, of one of the b vectors or
// of their products: in slices of kVectors, and in these [padded_columns / 16][kVectors][16].
WK_INLINE int64_t place_of(int64_t vector, int64_t column, int64_t columns) {
    const int64_t slice = vector / kVectors * kVectors * padded_columns(columns);
    return slice + column * kVectors + vector % kVectors * 16;
}

// `vectors` float64 [b, n] and `product`, float64 [b, n] too.
struct NormalProduct {
    Matrix matrix;
    const double* vectors;
    double* product;
};

struct InstructionSet;

// Writes V·AᵀA of every matrix, b vectors each, by `threads` threads. In float32 unless the matrix is of
// float64, in which whatever sums over many rows is kept anyhow.
void normal_products(const std::vector<NormalProduct>& products, int64_t b, const InstructionSet& set,
                     int threads);

}  // namespace weibull
