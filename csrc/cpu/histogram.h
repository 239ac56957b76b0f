// The histogram of |w| by bit pattern: a logarithmic grid without a logarithm.
#pragma once

#include <cstdint>
#include <vector>

#include "../columns.h"
#include "../sums.h"

namespace weibull {

// Counts entries into one row of the result at a time.
class Histogram {
public:
    // Adds the entries [begin, begin + count) of `column` to the row `counts`. A row that a
    // single call fills (`whole`) is written directly, others when the row changes.
    void add(const Column& column, int64_t begin, int64_t count, int64_t* counts, bool whole);

    // Writes what has been gathered. Other threads may be adding to the same row.
    void flush();

private:
    void count_block(const uint32_t* bits, int64_t count, uintptr_t next, int64_t step);

    // Increments of one counter wait for each other; with four tables equal neighbours do not,
    // even where all entries are equal. A table has a last octave for the non-finite entries,
    // and padding that keeps the tables off the same cache sets.
    static constexpr int kTables = 4, kStride = (256 << kBinBits) + 2 * 64 + 16;
    std::vector<uint32_t> tables_;
    int64_t* row_ = nullptr;
    int64_t gathered_ = 0;
    int64_t zeros_ = 0;  // entries equal to 0, which the tables count in their first bin
};

}  // namespace weibull
