// Some rows of a matrix multiplied by vectors and then by themselves. Included once per instruction set,
// inside its namespace.
//
// Rows go in panels that the L2 cache holds, columns in strips of which the vectors' and the products' lie in
// the L1 cache. In a strip a few rows at a time meet all kVectors vectors in registers, so that a vector is
// fetched once for all of these rows. Neither changes the order of any sum.
//
// Vectors and products lie as [columns / 16][kVectors][16], so that what is used together is together: the
// columns of a matrix of 2048 are as far apart as the L1 cache has places for, and would drive each other
// out.

// Rows at a time: 4·4 running registers, 4 of rows and one of a vector of AVX-512's 32, 3·4 + 3 + 1 of 16
// elsewhere.
constexpr int kRows = WK_VECTOR_BYTES == 64 ? 4 : 3;

constexpr int64_t kPanelRows = 12, kPanelBytes = 1 << 17;
constexpr int64_t kStrip = 512;

WK_INLINE int64_t panel_rows(int64_t stride, int64_t entry) {
    const int64_t fit = kPanelBytes / (stride * entry) / kRows * kRows;
    return fit < kRows ? kRows : fit < kPanelRows ? fit : kPanelRows;
}

// y = rows·vectors, each pair in sixteen lanes; one register of them after another.
template <class T>
using DotLanes = typename Lanes<T>::Vector[Lanes<T>::kParts][kRows][kVectors];

template <class T>
WK_INLINE typename Lanes<T>::Vector load_vector(const T* from) {
    typename Lanes<T>::Vector to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

// Asks for sixteen entries of some rows of the next panel. Every loop over a strip takes a turn, 2·kParts in
// all: memory has something to do all the time, and never so much at once that loads wait for it.
template <class T>
WK_INLINE void ask(const T* const* next, int64_t i, int turn) {
    for (int r = turn; r < kRows; r += 2 * Lanes<T>::kParts)
        for (int64_t line = 0; line < kLanes; line += 64 / sizeof(T))
            __builtin_prefetch(next[r] + i + line, 0, 2);  // into the L2 cache
}

// Adds a strip.
template <class T>
WK_INLINE void add_dots(DotLanes<T>& dots, const T* const* rows, const T* const* next, const T* vectors,
                        int64_t count) {
    using Vector = typename Lanes<T>::Vector;
    for (int k = 0; k < Lanes<T>::kParts; ++k) {
        Vector sums[kRows][kVectors];
        for (int r = 0; r < kRows; ++r)
            for (int c = 0; c < kVectors; ++c) sums[r][c] = dots[k][r][c];
        for (int64_t i = 0; i < count; i += kLanes) {
            const int64_t part = k * Lanes<T>::kWidth;
            ask(next, i, k);
            Vector row[kRows];
            for (int r = 0; r < kRows; ++r) row[r] = load_vector(rows[r] + i + part);
            for (int c = 0; c < kVectors; ++c) {
                const Vector v = load_vector(vectors + i * kVectors + c * kLanes + part);
                for (int r = 0; r < kRows; ++r) sums[r][c] = fused_multiply_add(row[r], v, sums[r][c]);
            }
        }
        for (int r = 0; r < kRows; ++r)
            for (int c = 0; c < kVectors; ++c) dots[k][r][c] = sums[r][c];
    }
}

// The sum of the lanes of a pair: halves on halves, whatever the width of a register. Spelled out, because
// the compiler's own idea of such a loop took longer than the products of a row of 512.
template <class T>
WK_INLINE T folded(const DotLanes<T>& dots, int row, int vector) {
    constexpr int kParts = Lanes<T>::kParts, kWidth = Lanes<T>::kWidth, kHalf = kLanes / 2;
    T lane[kLanes];
    for (int k = 0; k < (kParts + 1) / 2; ++k) {
        typename Lanes<T>::Vector part = dots[k][row][vector];
        if (kParts > 1) part += dots[k + kParts / 2][row][vector];
        std::memcpy(lane + k * kWidth, &part, sizeof part);
    }
    if (kParts == 1)
        for (int i = 0; i < kHalf; ++i) lane[i] += lane[i + kHalf];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// product += yᵀ·rows over a strip.
template <class T>
WK_INLINE void add_rows(T* product, const T (*y)[kVectors], const T* const* rows, const T* const* next,
                        int64_t count) {
    using Vector = typename Lanes<T>::Vector;
    Vector factor[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kVectors; ++c) factor[r][c] = y[r][c] - Vector{};
    for (int64_t i = 0; i < count; i += kLanes) {
        for (int k = 0; k < Lanes<T>::kParts; ++k) {
            const int64_t part = k * Lanes<T>::kWidth;
            ask(next, i, Lanes<T>::kParts + k);
            Vector row[kRows];
            for (int r = 0; r < kRows; ++r) row[r] = load_vector(rows[r] + i + part);
            for (int c = 0; c < kVectors; ++c) {
                T* const to = product + i * kVectors + c * kLanes + part;
                Vector sum = load_vector(to);
                for (int r = 0; r < kRows; ++r) sum = fused_multiply_add(row[r], factor[r][c], sum);
                std::memcpy(to, &sum, sizeof sum);
            }
        }
    }
}

// A row as numbers of type T: in place where it is stored so and in whole lanes, else in a buffer.
template <class T>
WK_INLINE const T* open_row(const Matrix& matrix, int64_t row, bool in_place, T* buffer) {
    const int64_t offset = matrix.offset(row);
    if (in_place) return static_cast<const T*>(matrix.entries.data) + offset;
    widen(matrix.entries, offset, matrix.columns, buffer);
    for (int64_t i = matrix.columns; i % kLanes; ++i) buffer[i] = T(0);
    return buffer;
}

// One panel and kVectors vectors: adds to their product. Rows from `count` up to whole tiles must be zeros.
template <class T>
WK_INLINE void add_panel(const T* const* rows, const T* const* next, int64_t count, int64_t stride,
                         const T* vectors, T* product) {
    DotLanes<T> dots[kPanelRows / kRows];
    std::memset(dots, 0, sizeof dots);
    const T *strip[kRows], *ahead[kRows];
    for (int64_t at = 0; at < stride; at += kStrip) {
        const int64_t width = stride - at < kStrip ? stride - at : kStrip;
        for (int64_t r = 0; r < count; r += kRows) {
            for (int k = 0; k < kRows; ++k) strip[k] = rows[r + k] + at, ahead[k] = next[r + k] + at;
            add_dots<T>(dots[r / kRows], strip, ahead, vectors + at * kVectors, width);
        }
    }
    T y[kPanelRows][kVectors];
    for (int64_t r = 0; r < count || r % kRows; ++r)
        for (int c = 0; c < kVectors; ++c) y[r][c] = folded<T>(dots[r / kRows], r % kRows, c);
    for (int64_t at = 0; at < stride; at += kStrip) {
        const int64_t width = stride - at < kStrip ? stride - at : kStrip;
        for (int64_t r = 0; r < count; r += kRows) {
            for (int k = 0; k < kRows; ++k) strip[k] = rows[r + k] + at, ahead[k] = next[r + k] + at;
            add_rows<T>(product + at * kVectors, y + r, strip, ahead, width);
        }
    }
}

template <class T>
void normal_product_chunk_as(const Matrix& matrix, const void* vectors, int64_t slices, int64_t begin,
                             int64_t end, void* workspace, double* total) {
    const int64_t stride = padded_columns(matrix.columns), slice = kVectors * stride;
    const int64_t panel = panel_rows(stride, sizeof(T));
    T* const product = static_cast<T*>(workspace);
    T* const zeros = product + slices * slice;
    T* const buffer = zeros + stride;
    std::memset(product, 0, (slices * slice + stride) * sizeof(T));
    constexpr Dtype kNative = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
    const bool in_place = matrix.entries.dtype == kNative && matrix.columns == stride;

    for (int64_t first = begin; first < end; first += panel) {
        const int64_t count = end - first < panel ? end - first : panel;
        const T *rows[kPanelRows], *next[kPanelRows];
        for (int64_t r = 0; r < panel; ++r) {
            rows[r] = r < count ? open_row(matrix, first + r, in_place, buffer + r * stride) : zeros;
            const bool ahead = in_place && first + panel + r < end;
            next[r] = ahead ? open_row(matrix, first + panel + r, true, buffer) : rows[r];
        }
        for (int64_t s = 0; s < slices; ++s)
            add_panel(rows, next, count, stride, static_cast<const T*>(vectors) + s * slice,
                      product + s * slice);
    }
    for (int64_t i = 0; i < slices * slice; ++i) total[i] += double(product[i]);
}

int64_t normal_product_workspace(const Matrix& matrix, int64_t slices) {
    const int64_t entry = is_double(matrix.entries) ? sizeof(double) : sizeof(float);
    return (slices * kVectors + 1 + kPanelRows) * padded_columns(matrix.columns) * entry;
}

void normal_product_chunk(const Matrix& matrix, const void* vectors, int64_t slices, int64_t begin,
                          int64_t end, void* workspace, double* total) {
    is_double(matrix.entries)
        ? normal_product_chunk_as<double>(matrix, vectors, slices, begin, end, workspace, total)
        : normal_product_chunk_as<float>(matrix, vectors, slices, begin, end, workspace, total);
}
