// One chunk of a Gram matrix, or of its columns' norms and steps. Included once per instruction set, inside
// its namespace.

using Register = Lanes<double>::Vector;
constexpr int kParts = Lanes<double>::kParts;
constexpr int64_t kSteps = kBlock / kLanes;

// Rows of a tile: the products of two tiles stay in registers with a row of one and an entry of the
// other, 4·4 + 4 + 1 of AVX-512's 32 and 3·3 + 3 + 1 of 16 elsewhere.
constexpr int kTile = WK_VECTOR_BYTES == 64 ? 4 : 3;

// A block of a tile's rows in the order in which products read it.
using Panel = Register[kParts][kSteps][kTile];

// The running lanes of every pair of rows of two tiles.
using Products = Register[kParts][kTile][kTile];

WK_INLINE bool any_double(const Column* columns, int64_t size) {
    bool found = false;
    for (int64_t i = 0; i < size; ++i) found = found || is_double(columns[i]);
    return found;
}

WK_INLINE int64_t tiles_of(int64_t size) { return (size + kTile - 1) / kTile; }

// Lays out the differences between kTile + 1 neighbours.
template <class T>
WK_INLINE void lay_out(Panel& panel, const T* const* neighbours, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) {
        for (int r = 1; r <= kTile; ++r) prefetch(neighbours[r] + i);
        for (int k = 0; k < kParts; ++k) {
            const int64_t at = i + k * Lanes<double>::kWidth;
            Register before = read_as_double(neighbours[0] + at);
            for (int r = 0; r < kTile; ++r) {
                const Register after = read_as_double(neighbours[r + 1] + at);
                panel[k][i / kLanes][r] = after - before;
                before = after;
            }
        }
    }
}

// Adds a block's products. One register of a pair's lanes takes all steps before the next one begins,
// so that many pairs fit beside each other. Of a tile with itself, kDiagonal, the pairs on and below the
// diagonal are enough.
template <bool kDiagonal>
WK_INLINE void add_products(Products& products, const Panel& rows, const Panel& columns, int64_t steps) {
    for (int k = 0; k < kParts; ++k) {
        Register sums[kTile][kTile];
        for (int r = 0; r < kTile; ++r)
            for (int c = 0; c < kTile; ++c) sums[r][c] = products[k][r][c];
        for (int64_t s = 0; s < steps; ++s)
            for (int c = 0; c < kTile; ++c)
                for (int r = kDiagonal ? c : 0; r < kTile; ++r)
                    sums[r][c] = fused_multiply_add(rows[k][s][r], columns[k][s][c], sums[r][c]);
        for (int r = 0; r < kTile; ++r)
            for (int c = 0; c < kTile; ++c) products[k][r][c] = sums[r][c];
    }
}

template <class T>
void gram_chunk_as(const Column* columns, int64_t size, int64_t begin, int64_t chunk, void* workspace,
                   double* gram) {
    const int64_t tiles = tiles_of(size), pairs = tiles * (tiles + 1) / 2;
    Panel* const panels = static_cast<Panel*>(workspace);
    Products* const products = reinterpret_cast<Products*>(panels + tiles);
    std::memset(products, 0, pairs * sizeof(Products));

    const T zeros[kBlock] = {};
    Block<T> blocks[kTile + 1];
    for (int64_t done = 0; done < chunk; done += kBlock) {
        const int64_t count = chunk - done < kBlock ? chunk - done : kBlock;
        const int64_t steps = (count + kLanes - 1) / kLanes;
        const T* neighbours[kTile + 1];
        neighbours[kTile] = zeros;  // before the first column
        for (int64_t t = 0; t < tiles; ++t) {
            neighbours[0] = neighbours[kTile];
            for (int r = 1; r <= kTile; ++r) {
                const int64_t i = t * kTile + r - 1;
                neighbours[r] = neighbours[r - 1];  // nobody reads the rows that fill up the last tile
                if (i >= size) continue;
                Block<T>& block = blocks[i % (kTile + 1)];
                block.open(columns[i], begin + done, count, T(0));
                neighbours[r] = block.entries;
            }
            lay_out(panels[t], neighbours, count);
        }
        Products* at = products;
        for (int64_t i = 0; i < tiles; ++i) {
            for (int64_t j = 0; j < i; ++j) add_products<false>(*at++, panels[i], panels[j], steps);
            add_products<true>(*at++, panels[i], panels[i], steps);
        }
    }

    for (int64_t i = 0; i < size; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            const int64_t t = i / kTile;
            const Products& found = products[t * (t + 1) / 2 + j / kTile];
            Lanes<double> lanes;
            for (int k = 0; k < kParts; ++k) lanes.part[k] = found[k][i % kTile][j % kTile];
            gram[i * size + j] += sum_of_lanes(lanes);
        }
    }
}

int64_t gram_workspace(int64_t size) {
    const int64_t tiles = tiles_of(size);
    return tiles * sizeof(Panel) + tiles * (tiles + 1) / 2 * sizeof(Products);
}

void gram_chunk(const Column* columns, int64_t size, int64_t begin, int64_t count, void* workspace,
                double* gram) {
    return any_double(columns, size) ? gram_chunk_as<double>(columns, size, begin, count, workspace, gram)
                                     : gram_chunk_as<float>(columns, size, begin, count, workspace, gram);
}

// The running lanes of a column's ‖w‖² and of ‖w − before‖².
struct Move {
    Lanes<double> norm_sq, step_sq;
};

// One register after another, so that AVX2's sixteen hold the sums beside what is added to them.
template <class T>
WK_INLINE void add_move(Move& move, const T* before, const T* after, int64_t count) {
    Move sums = move;  // in registers
    for (int64_t i = 0; i < count; i += kLanes) {
        prefetch(after + i);
        for (int k = 0; k < kParts; ++k) {
            const int64_t at = i + k * Lanes<double>::kWidth;
            const Register w = read_as_double(after + at);
            const Register step = w - read_as_double(before + at);
            sums.norm_sq.part[k] = fused_multiply_add(w, w, sums.norm_sq.part[k]);
            sums.step_sq.part[k] = fused_multiply_add(step, step, sums.step_sq.part[k]);
        }
    }
    move = sums;
}

template <class T>
void moves_chunk_as(const Column* columns, int64_t size, int64_t begin, int64_t chunk, void* workspace,
                    double* moves) {
    Move* const running = static_cast<Move*>(workspace);
    std::memset(running, 0, size * sizeof(Move));

    Block<T> blocks[2];  // a column's and its predecessor's, which the L1 cache still holds
    for (int64_t done = 0; done < chunk; done += kBlock) {
        const int64_t count = chunk - done < kBlock ? chunk - done : kBlock;
        for (int64_t i = 0; i < size; ++i) {
            Block<T>& after = blocks[i % 2];
            after.open(columns[i], begin + done, count, T(0));
            const Block<T>& before = i ? blocks[(i - 1) % 2] : after;
            add_move(running[i], before.entries, after.entries, count);
        }
    }

    for (int64_t i = 0; i < size; ++i) {
        moves[2 * i] += sum_of_lanes(running[i].norm_sq);
        if (i) moves[2 * i + 1] += sum_of_lanes(running[i].step_sq);  // ∞ − ∞ would spoil the first's 0
    }
}

int64_t moves_workspace(int64_t size) { return size * sizeof(Move); }

void moves_chunk(const Column* columns, int64_t size, int64_t begin, int64_t count, void* workspace,
                 double* moves) {
    return any_double(columns, size) ? moves_chunk_as<double>(columns, size, begin, count, workspace, moves)
                                     : moves_chunk_as<float>(columns, size, begin, count, workspace, moves);
}
