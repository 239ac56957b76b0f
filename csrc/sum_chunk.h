// One chunk of one tensor, read once. Included once per instruction set, inside its namespace.

// Short enough that the float32 sums of a block keep their digits (see Logs) and that three
// widened columns stay in the L1 cache.
constexpr int64_t kBlock = 256;

// How far ahead memory is asked for, in bytes. Left to the hardware's prefetcher the pass took
// 1.7 times as long as a plain read: the arithmetic keeps it from seeing the next loads early.
constexpr int kAhead = 2048;

// By address, because the place asked for may lie past the end; asking is harmless there.
WK_INLINE void prefetch(const void* from) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + kAhead));
}

WK_INLINE float from_bfloat16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// The exponent of a half is rebased by a multiplication, which is exact and puts subnormal
// halves right as well; infinities and NaN then need their exponent filled up again.
WK_INLINE float from_float16(uint16_t bits) {
    uint32_t wide = uint32_t(bits & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    value *= 0x1p112f;
    std::memcpy(&wide, &value, sizeof wide);
    wide |= (bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
    wide |= uint32_t(bits & 0x8000) << 16;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// `count` entries from `begin` as T: in place where the column is stored as T, else widened
// into `buffer`.
template <class T>
const T* read_block(const Column& column, int64_t begin, int64_t count, T* buffer) {
    const Dtype native = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
    if (column.dtype == native) return static_cast<const T*>(column.data) + begin;
    if (column.dtype == Dtype::kBfloat16) {
        const uint16_t* from = static_cast<const uint16_t*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) buffer[i] = from_bfloat16(from[i]);
    } else if (column.dtype == Dtype::kFloat16) {
        const uint16_t* from = static_cast<const uint16_t*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) buffer[i] = from_float16(from[i]);
    } else {
        const float* from = static_cast<const float*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
    }
    return buffer;
}

// The running lanes of ⟨w,u⟩, ‖u‖² and ‖w‖².
struct Squares {
    Lanes<double> weight_update{0.0}, update_sq{0.0}, weight_sq{0.0};

    WK_INLINE Squares() {}  // a constructor left to the compiler misses the target pragma

    template <class T>
    WK_INLINE void add(const T* weight, const T* exp_avg, const T* exp_avg_sq, const Lanes<T>& scaled_eps) {
        const Lanes<double> w = load_as_double(weight);
        weight_sq = multiply_add(w, w, weight_sq);
        if (!exp_avg) return;
        const Lanes<double> u =
            to_double(raw_update(Lanes<T>::load(exp_avg), Lanes<T>::load(exp_avg_sq), scaled_eps));
        weight_update = multiply_add(w, u, weight_update);
        update_sq = multiply_add(u, u, update_sq);
    }
};

// The running lanes of the logarithms: ln|w| = e·ln 2 + p with e the exponent and p the
// logarithm of the mantissa. Over a block the sums of e and e² are exact in T, those with p are
// rounded kBlock/16 times; then they go to double. To add e·ln 2 and p entry by entry would
// round away 4e-6 near ln|w| = −70.
template <class Real>
struct Logs {
    Lanes<Real> e{0}, e_sq{0}, p{0}, p_sq{0}, ep{0};

    WK_INLINE Logs() {}

    template <class T>
    WK_INLINE void add(const Lanes<Int<T>>& normal, const Lanes<Int<T>>& scaled_by) {
        using F = Format<T>;
        const Lanes<Int<T>> exponent =
            shift_right<F::kMantissaBits>(normal - Lanes<Int<T>>(F::kThreeQuarters));
        const Lanes<T> mantissa = bit_cast<T>(normal - shift_left<F::kMantissaBits>(exponent));
        const Lanes<T> exponent_ = convert<T>(exponent + scaled_by);
        const Lanes<T> log = log1p_polynomial(mantissa - Lanes<T>(T(1)));
        e = e + exponent_;
        e_sq = multiply_add(exponent_, exponent_, e_sq);
        p = p + log;
        p_sq = multiply_add(log, log, p_sq);
        ep = multiply_add(exponent_, log, ep);
    }

    template <class T>
    WK_INLINE void add(const Logs<T>& block) {
        e = e + to_double(block.e);
        e_sq = e_sq + to_double(block.e_sq);
        p = p + to_double(block.p);
        p_sq = p_sq + to_double(block.p_sq);
        ep = ep + to_double(block.ep);
    }
};

// Everything a chunk adds up.
template <class T>
struct Running {
    Squares squares;
    Logs<double> logs;
    Lanes<Int<T>> largest{0}, zero_count{0}, non_finite_count{0};

    WK_INLINE Running() {}
};

// The logarithms of a block that may hold anything. A subnormal is its bits, read as an integer, times 2^-149
// (2^-1074). What has no logarithm stands in as 1, whose logarithm adds nothing.
template <class T>
WK_INLINE void add_any_logs(Running<T>& running, const T* weight, int64_t count) {
    using F = Format<T>;
    using I = Lanes<Int<T>>;
    Logs<T> logs;
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

// Every sum of a block, assuming that its entries are normal numbers. Less the smallest normal
// number and unsigned, every other entry is large: one maximum finds those, in which case the
// logarithms are taken again with care, and else gives the largest magnitude.
template <class T>
WK_INLINE void add_block(Running<T>& running, const T* weight, const T* exp_avg, const T* exp_avg_sq,
                         int64_t count, const Lanes<T>& scaled_eps) {
    using F = Format<T>;
    using I = Lanes<Int<T>>;
    Squares squares = running.squares;
    Logs<T> logs;
    I largest{0};
    for (int64_t i = 0; i < count; i += kLanes) {
        prefetch(weight + i);
        if (exp_avg) {
            prefetch(exp_avg + i);
            prefetch(exp_avg_sq + i);
        }
        squares.add(weight + i, exp_avg ? exp_avg + i : nullptr, exp_avg_sq + i, scaled_eps);
        const I bits = bit_cast<Int<T>>(Lanes<T>::load(weight + i)) & I(F::kMagnitude);
        largest = unsigned_maximum(largest, bits - I(F::kSmallestNormal));
        logs.template add<T>(bits, I(0));
    }
    running.squares = squares;
    const I magnitude = largest + I(F::kSmallestNormal);
    if (any(less(magnitude, I(F::kSmallestNormal)) | less(I(F::kInfinity - 1), magnitude))) {
        add_any_logs(running, weight, count);
    } else {
        running.largest = unsigned_maximum(running.largest, magnitude);
        running.logs.add(logs);
    }
}

template <class T>
Sums sum_chunk_as(const Tensor& tensor, int64_t begin, int64_t chunk) {
    const bool has_moments = tensor.exp_avg.data != nullptr;
    const Lanes<T> scaled_eps{T(tensor.scaled_eps)};
    Running<T> running;
    int64_t padding = 0;
    alignas(64) T weight_buffer[kBlock], exp_avg_buffer[kBlock], exp_avg_sq_buffer[kBlock];

    for (int64_t done = 0; done < chunk; done += kBlock) {
        const int64_t count = chunk - done < kBlock ? chunk - done : kBlock;
        const int64_t whole = count - count % kLanes;
        const T* w = read_block(tensor.weight, begin + done, count, weight_buffer);
        const T *m = nullptr, *v = nullptr;
        if (has_moments) {
            m = read_block(tensor.exp_avg, begin + done, count, exp_avg_buffer);
            v = read_block(tensor.exp_avg_sq, begin + done, count, exp_avg_sq_buffer);
        }
        if (whole) add_block(running, w, m, v, whole, scaled_eps);

        // The tail goes the same way, filled up with entries whose every force is zero.
        if (const int64_t rest = count - whole) {
            alignas(64) T tail[3][kLanes];
            for (int i = 0; i < kLanes; ++i) {
                tail[0][i] = i < rest ? w[whole + i] : T(0);
                tail[1][i] = m && i < rest ? m[whole + i] : T(0);
                tail[2][i] = v && i < rest ? v[whole + i] : T(1);
            }
            add_block(running, tail[0], m ? tail[1] : nullptr, tail[2], kLanes, scaled_eps);
            padding += kLanes - rest;
        }
    }

    Sums sums;
    sums.weight_update = sum_of_lanes(running.squares.weight_update);
    sums.update_sq = sum_of_lanes(running.squares.update_sq);
    sums.weight_sq = sum_of_lanes(running.squares.weight_sq);
    const Logs<double>& logs = running.logs;
    sums.log_sum = kLn2 * sum_of_lanes(logs.e) + sum_of_lanes(logs.p);
    sums.log_sq_sum =
        kLn2 * kLn2 * sum_of_lanes(logs.e_sq) + 2 * kLn2 * sum_of_lanes(logs.ep) + sum_of_lanes(logs.p_sq);
    sums.zero_count = sum_of_lanes(running.zero_count) - padding;
    sums.non_finite_count = sum_of_lanes(running.non_finite_count);
    const Int<T> largest = max_of_lanes(running.largest);
    T max_abs;
    std::memcpy(&max_abs, &largest, sizeof max_abs);
    sums.max_abs = max_abs;
    return sums;
}

Sums sum_chunk(const Tensor& tensor, int64_t begin, int64_t count) {
    const auto is_double = [](const Column& c) { return c.data && c.dtype == Dtype::kFloat64; };
    const bool wide = is_double(tensor.weight) || is_double(tensor.exp_avg) || is_double(tensor.exp_avg_sq);
    return wide ? sum_chunk_as<double>(tensor, begin, count) : sum_chunk_as<float>(tensor, begin, count);
}
