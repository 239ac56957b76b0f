// The running sums over the entries of a chunk. Included once per instruction set, inside its
// namespace.

// Everything a chunk adds up.
template <class T>
struct Running {
    Squares<Lanes<double>> squares;
    Logs<Lanes<double>> logs;
    Lanes<Int<T>> largest{0}, zero_count{0}, non_finite_count{0};
    int64_t padding = 0;  // zeros that no tensor holds

    WK_INLINE Running() {}
};

// What the weights of a block themselves are: logarithms, extremes, counts. A subnormal is its bits,
// read as an integer, times 2^-149 (2^-1074). What has no logarithm stands in as 1, whose
// logarithm adds nothing.
template <class T>
WK_INLINE void add_any_weights(Running<T>& running, const T* weight, int64_t count) {
    using F = Format<T>;
    using I = Lanes<Int<T>>;
    Logs<Lanes<T>> logs;
    for (int64_t i = 0; i < count; i += kLanes) {
        const I bits = bit_cast<Int<T>>(Lanes<T>::load(weight + i)) & I(F::kMagnitude);
        const I is_zero = less(bits, I(1)), is_non_finite = less(I(F::kInfinity - 1), bits);
        const I is_subnormal = less(bits, I(F::kSmallestNormal)), has_no_log = is_zero | is_non_finite;
        running.zero_count = running.zero_count - is_zero;
        running.non_finite_count = running.non_finite_count - is_non_finite;
        running.largest = unsigned_maximum(running.largest, select(is_non_finite, I(0), bits));
        const I normal = select(is_subnormal, bit_cast<Int<T>>(convert<T>(bits)), bits);
        const I scaled_by = select(is_subnormal, I(F::kSubnormalExponent), I(0));
        logs.template add<T>(select(has_no_log, I(F::kOne), normal), select(has_no_log, I(0), scaled_by));
    }
    running.logs.add(logs);
}

// The same, assuming that the entries are normal numbers. Less the smallest normal number and
// unsigned, every other entry is large: one maximum finds those, in which case all is done again
// with care, and else gives the largest magnitude.
template <class T>
WK_INLINE void add_weights(Running<T>& running, const T* weight, int64_t count) {
    using F = Format<T>;
    using I = Lanes<Int<T>>;
    Logs<Lanes<T>> logs;
    I largest{0};
    for (int64_t i = 0; i < count; i += kLanes) {
        const I bits = bit_cast<Int<T>>(Lanes<T>::load(weight + i)) & I(F::kMagnitude);
        largest = unsigned_maximum(largest, bits - I(F::kSmallestNormal));
        logs.template add<T>(bits, I(0));
    }
    const I magnitude = largest + I(F::kSmallestNormal);
    if (any(less(magnitude, I(F::kSmallestNormal)) | less(I(F::kInfinity - 1), magnitude))) {
        add_any_weights(running, weight, count);
    } else {
        running.largest = unsigned_maximum(running.largest, magnitude);
        running.logs.add(logs);
    }
}

// The entries of a block up to its last whole lanes, then the lanes that were filled up with zeros:
// those alone take the careful way.
template <class T>
WK_INLINE void add_padded_weights(Running<T>& running, const T* weight, int64_t count) {
    const int64_t whole = count - count % kLanes;
    if (whole) add_weights(running, weight, whole);
    if (whole == count) return;
    add_weights(running, weight + whole, kLanes);
    running.padding += kLanes - (count - whole);
}

template <class T>
WK_INLINE void finish(const Running<T>& running, Sums& sums) {
    sums.weight_update = sum_of_lanes(running.squares.weight_update);
    sums.update_sq = sum_of_lanes(running.squares.update_sq);
    sums.weight_sq = sum_of_lanes(running.squares.weight_sq);
    Logs<double> logs;
    logs.e = sum_of_lanes(running.logs.e);
    logs.e_sq = sum_of_lanes(running.logs.e_sq);
    logs.p = sum_of_lanes(running.logs.p);
    logs.p_sq = sum_of_lanes(running.logs.p_sq);
    logs.ep = sum_of_lanes(running.logs.ep);
    sums.log_sum = log_sum(logs);
    sums.log_sq_sum = log_sq_sum(logs);
    sums.zero_count = sum_of_lanes(running.zero_count) - running.padding;
    sums.non_finite_count = sum_of_lanes(running.non_finite_count);
    const Int<T> largest = max_of_lanes(running.largest);
    T max_abs;
    std::memcpy(&max_abs, &largest, sizeof max_abs);
    sums.max_abs = max_abs;
}
