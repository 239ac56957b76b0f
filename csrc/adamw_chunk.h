// One chunk of one tensor stepped by AdamW. Included once per instruction set, inside its namespace.

// The numbers of `StepNumbers` as every lane needs them, rounded as torch's fused step rounds them.
template <class T>
struct StepLanes {
    Lanes<T> grad_scale, sign, gain1, gain2, loss2, scaled_eps, rate, lost;
    bool near_mean, unscales;

    WK_INLINE explicit StepLanes(const StepNumbers& n)
        : grad_scale(T(n.grad_scale)),
          sign(T(n.sign)),
          gain1(T(1 - n.beta1)),
          gain2(T(1 - n.beta2)),
          loss2(T(1) - T(n.beta2)),
          scaled_eps(T(n.scaled_eps)),
          rate(T(n.rate)),
          lost(T(n.lost)),
          near_mean(1 - n.beta1 < 0.5),
          unscales(n.unscales) {}
};

// Steps a block in memory and keeps its weights of before. `max_exp_avg_sq` is null without amsgrad.
template <class T>
WK_INLINE void step_block(Squares& squares, T* weight, T* grad, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,
                          T* before, int64_t count, const StepLanes<T>& n) {
    Squares sums = squares;  // in registers
    for (int64_t i = 0; i < count; i += kLanes) {
        prefetch(weight + i);
        prefetch(grad + i);
        prefetch(exp_avg + i);
        prefetch(exp_avg_sq + i);
        Lanes<T> g = Lanes<T>::load(grad + i);
        if (n.unscales) {
            g = g / n.grad_scale;
            g.store(grad + i);
        }
        g = g * n.sign;
        const Lanes<T> m = lerp(Lanes<T>::load(exp_avg + i), g, n.gain1, n.near_mean);
        const Lanes<T> v = multiply_add(n.gain2 * g, g, without(n.loss2, Lanes<T>::load(exp_avg_sq + i)));
        m.store(exp_avg + i);
        v.store(exp_avg_sq + i);
        Lanes<T> largest = v;
        if (max_exp_avg_sq) {
            prefetch(max_exp_avg_sq + i);
            largest = maximum(Lanes<T>::load(max_exp_avg_sq + i), v);
            largest.store(max_exp_avg_sq + i);
        }
        const Lanes<T> u = raw_update(m, largest, n.scaled_eps);
        const Lanes<T> w = Lanes<T>::load(weight + i);
        w.store(before + i);
        sums.add(to_double(w), to_double(u));
        multiply_add(negated(n.rate), u, without(n.lost, w)).store(weight + i);
    }
    squares = sums;
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
        step_block(running.squares, weight.entries, grad.entries, exp_avg.entries, exp_avg_sq.entries,
                   max_exp_avg_sq.entries, before, count, lanes);
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
