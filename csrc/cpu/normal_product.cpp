#include "normal_product.h"

#include <algorithm>
#include <memory>

#include "instruction_sets.h"
#include "subnormals.h"
#include "threads.h"

namespace weibull {
namespace {

// Rows whose products are summed as the matrix is stored, in float32 as a rule, before they go to a float64.
constexpr int64_t kRun = 256;

// A matrix is cut into no more chunks than this: each has a product of its own, which is to stay small beside
// its rows.
constexpr int64_t kMostChunks = 32;

struct alignas(64) CacheLine {
    char bytes[64];
};

// Calls work(at, count, place) for the entries [at, at + count) of b vectors, sixteen or the last few of one,
// and their place in the kernels.
template <class Work>
void by_lanes(int64_t b, int64_t columns, const Work& work) {
    for (int64_t c = 0; c < b; ++c)
        for (int64_t i = 0; i < columns; i += 16)
            work(c * columns + i, std::min<int64_t>(16, columns - i), place_of(c, i, columns));
}

template <class T>
void pad(const NormalProduct& product, int64_t b, T* to) {
    by_lanes(b, product.matrix.columns, [&](int64_t at, int64_t count, int64_t place) {
        for (int64_t k = 0; k < count; ++k) to[place + k] = T(product.vectors[at + k]);
    });
}

// The vectors of a matrix as its kernel reads them, zeros where there are none.
std::vector<CacheLine> padded(const NormalProduct& product, int64_t b, int64_t slices) {
    const bool wide = product.matrix.entries.dtype == Dtype::kFloat64;
    const int64_t entry = wide ? sizeof(double) : sizeof(float);
    const int64_t bytes = slices * kVectors * padded_columns(product.matrix.columns) * entry;
    std::vector<CacheLine> lines(bytes / sizeof(CacheLine));
    wide ? pad(product, b, reinterpret_cast<double*>(lines.data()))
         : pad(product, b, reinterpret_cast<float*>(lines.data()));
    return lines;
}

// Some rows of a matrix as a Chunk: begin is a row, count a number of entries.
void add_chunks(std::vector<Chunk>& chunks, int64_t index, const Matrix& matrix) {
    const int64_t rows = matrix.pieces * matrix.rows;
    const int64_t each = std::max<int64_t>((rows + kMostChunks * kRun - 1) / (kMostChunks * kRun), 1) * kRun;
    for (int64_t begin = 0; begin < rows; begin += each)
        chunks.push_back({index, begin, std::min(each, rows - begin) * matrix.columns});
}

}  // namespace

void normal_products(const std::vector<NormalProduct>& products, int64_t b, const InstructionSet& set,
                     int threads) {
    const int64_t slices = (b + kVectors - 1) / kVectors;
    std::vector<std::vector<CacheLine>> vectors;
    std::vector<Chunk> chunks;
    int64_t most = 0;
    for (size_t i = 0; i < products.size(); ++i) {
        const Matrix& matrix = products[i].matrix;
        vectors.push_back(padded(products[i], b, slices));
        add_chunks(chunks, i, matrix);
        most = std::max(most, set.normal_product_workspace(matrix, slices));
    }
    // The largest first: whoever comes last then has little left to do.
    std::stable_sort(chunks.begin(), chunks.end(),
                     [](const Chunk& a, const Chunk& b) { return a.count > b.count; });

    const auto size = [&](const Chunk& chunk) {
        return slices * kVectors * padded_columns(products[chunk.tensor].matrix.columns);
    };
    std::vector<int64_t> place(chunks.size() + 1);
    for (size_t i = 0; i < chunks.size(); ++i) place[i + 1] = place[i] + size(chunks[i]);
    const std::unique_ptr<double[]> partials(new double[place.back()]);  // written first by its own thread
    const auto work = [&](const Take& take) {
        const SubnormalsKept kept;
        std::vector<CacheLine> workspace(most / sizeof(CacheLine));
        for (size_t first, last; take(first, last);) {
            for (size_t i = first; i < last; ++i) {
                const Chunk& chunk = chunks[i];
                const Matrix& matrix = products[chunk.tensor].matrix;
                double* const partial = partials.get() + place[i];
                std::fill(partial, partials.get() + place[i + 1], 0.0);
                const int64_t end = chunk.begin + chunk.count / matrix.columns;
                for (int64_t row = chunk.begin; row < end; row += kRun)
                    set.normal_product_chunk(matrix, vectors[chunk.tensor].data(), slices, row,
                                             std::min(row + kRun, end), workspace.data(), partial);
            }
        }
    };
    share_chunks(chunks, threads, work, 1);

    // In the order of the chunks, which is that of the rows where they are of one matrix.
    for (const NormalProduct& product : products)
        std::fill(product.product, product.product + b * product.matrix.columns, 0.0);
    for (size_t i = 0; i < chunks.size(); ++i) {
        const NormalProduct& product = products[chunks[i].tensor];
        const double* const partial = partials.get() + place[i];
        by_lanes(b, product.matrix.columns, [&](int64_t at, int64_t count, int64_t from) {
            for (int64_t k = 0; k < count; ++k) product.product[at + k] += partial[from + k];
        });
    }
}

}  // namespace weibull
