// One chunk of one tensor stepped by AdamW. Included once per instruction set, inside its namespace.

// The numbers of `StepNumbers` as every lane needs them, rounded as torch's fused step rounds them.
template <class T>
struct StepLanes {
    Lanes<T> grad_scale, sign, gain1, gain2, beta2, scaled_eps, rate, decay_factor;
    bool near_mean, unscales;

    WK_INLINE Lanes<T> faded(const Lanes<T>& v) const { return beta2 * v; }
    WK_INLINE Lanes<T> decayed(const Lanes<T>& w) const { return decay_factor * w; }

    WK_INLINE explicit StepLanes(const StepNumbers& n)
        : grad_scale(T(n.grad_scale)),
          sign(T(n.sign)),
          gain1(T(1 - n.beta1)),
          gain2(T(1 - n.beta2)),
          beta2(T(n.beta2)),
          scaled_eps(T(n.scaled_eps)),
          rate(T(n.rate)),
          decay_factor(T(n.decay_factor)),
          near_mean(1 - n.beta1 < 0.5),
          unscales(n.unscales) {}

    // For lanes that only begin with entries. The others get an ε: without one, and with β₂ = 0, they
    // would divide zero by zero.
    WK_INLINE StepLanes filled_up_after(int64_t entries) const {
        StepLanes filled = *this;
        T eps[kLanes];
        scaled_eps.store(eps);
        for (int64_t i = entries; i < kLanes; ++i) eps[i] = T(1);
        filled.scaled_eps = Lanes<T>::load(eps);
        return filled;
    }
};

// Where the columns of a block begin; `max_exp_avg_sq` is null without amsgrad.
template <class T>
struct Entries {
    T *weight, *grad, *exp_avg, *exp_avg_sq, *max_exp_avg_sq, *before;

    WK_INLINE Entries from(int64_t i) const {
        return {
            weight + i, grad + i, exp_avg + i, exp_avg_sq + i, max_exp_avg_sq ? max_exp_avg_sq + i : nullptr,
            before + i};
    }
};

// Steps `count` entries in memory, whole lanes, and keeps the weights of before.
template <class T>
WK_INLINE void step_lanes(Squares<Lanes<double>>& squares, const Entries<T>& at, int64_t count,
                          const StepLanes<T>& n) {
    Squares<Lanes<double>> sums = squares;  // in registers
    for (int64_t i = 0; i < count; i += kLanes) {
        prefetch(at.weight + i);
        prefetch(at.grad + i);
        prefetch(at.exp_avg + i);
        prefetch(at.exp_avg_sq + i);
        Lanes<T> g = Lanes<T>::load(at.grad + i);
        if (n.unscales) {
            g = g / n.grad_scale;
            g.store(at.grad + i);
        }
        g = g * n.sign;
        Lanes<T> m = Lanes<T>::load(at.exp_avg + i), v = Lanes<T>::load(at.exp_avg_sq + i);
        step_moments(n, g, m, v);
        m.store(at.exp_avg + i);
        v.store(at.exp_avg_sq + i);
        Lanes<T> largest = v;
        if (at.max_exp_avg_sq) {
            prefetch(at.max_exp_avg_sq + i);
            largest = maximum(Lanes<T>::load(at.max_exp_avg_sq + i), v);
            largest.store(at.max_exp_avg_sq + i);
        }
        const Lanes<T> u = raw_update(m, largest, n.scaled_eps);
        const Lanes<T> w = Lanes<T>::load(at.weight + i);
        w.store(at.before + i);
        sums.add(to_double(w), to_double(u));
        step_weight(n, w, u).store(at.weight + i);
    }
    squares = sums;
}

// The same for any `count`, the last lanes filled up.
template <class T>
WK_INLINE void step_block(Squares<Lanes<double>>& squares, const Entries<T>& at, int64_t count,
                          const StepLanes<T>& n) {
    const int64_t rest = count % kLanes, whole = count - rest;
    if (whole) step_lanes(squares, at, whole, n);
    if (!rest) return;
    step_lanes(squares, at.from(whole), kLanes, n.filled_up_after(rest));
    // Where the numbers are NaN so is by now what was filled up.
    for (int64_t i = count; i < whole + kLanes; ++i) at.weight[i] = at.before[i] = T(0);
}

// Adds (w⁺−w)(w⁺+w): what the step, its rounding included, did to ‖w‖².
template <class T>
WK_INLINE void add_change(Lanes<double>& change, const T* before, const T* after, int64_t count) {
    Lanes<double> sum = change;
    for (int64_t i = 0; i < count; i += kLanes) {
        const Lanes<double> from = load_as_double(before + i), to = load_as_double(after + i);
        sum = multiply_add(to - from, to + from, sum);
    }
    change = sum;
}

template <class T>
StepSums step_chunk_as(const Stepped& tensor, const StepNumbers& numbers, int64_t begin, int64_t chunk) {
    const bool amsgrad = tensor.max_exp_avg_sq.data != nullptr;
    const StepLanes<T> lanes(numbers);
    Running<T> running;
    Lanes<double> change{0.0};
    Block<T> weight, grad, exp_avg, exp_avg_sq, max_exp_avg_sq;
    alignas(64) T before[kBlock];
    for (int64_t done = 0; done < chunk; done += kBlock) {
        const int64_t count = chunk - done < kBlock ? chunk - done : kBlock, at = begin + done;
        weight.open(tensor.weight, at, count, T(0));
        grad.open(tensor.grad, at, count, T(0));
        exp_avg.open(tensor.exp_avg, at, count, T(0));
        exp_avg_sq.open(tensor.exp_avg_sq, at, count, T(1));
        if (amsgrad) max_exp_avg_sq.open(tensor.max_exp_avg_sq, at, count, T(1));
        const Entries<T> entries{weight.entries,     grad.entries,           exp_avg.entries,
                                 exp_avg_sq.entries, max_exp_avg_sq.entries, before};
        step_block(running.squares, entries, count, lanes);
        weight.close(tensor.weight, at, count);
        if (lanes.unscales) grad.close(tensor.grad, at, count);
        exp_avg.close(tensor.exp_avg, at, count);
        exp_avg_sq.close(tensor.exp_avg_sq, at, count);
        if (amsgrad) max_exp_avg_sq.close(tensor.max_exp_avg_sq, at, count);
        if (!tensor.ledger) continue;
        add_change(change, before, weight.entries, count);
        add_padded_weights(running, weight.entries, count);
    }
    StepSums sums;
    finish(running, sums);
    sums.change = sum_of_lanes(change);
    return sums;
}

StepSums step_chunk(const Stepped& tensor, const StepNumbers& numbers, int64_t begin, int64_t count) {
    const bool wide = is_double(tensor.weight) || is_double(tensor.grad) || is_double(tensor.exp_avg) ||
                      is_double(tensor.exp_avg_sq) || is_double(tensor.max_exp_avg_sq);
    return wide ? step_chunk_as<double>(tensor, numbers, begin, count)
                : step_chunk_as<float>(tensor, numbers, begin, count);
}
