// One chunk of one tensor, read once. Included once per instruction set, inside its namespace.

template <class T>
WK_INLINE void add_squares(Squares<Lanes<double>>& squares, const T* weight, const T* exp_avg,
                           const T* exp_avg_sq, int64_t count, const Lanes<T>& scaled_eps) {
    Squares<Lanes<double>> sums = squares;  // in registers
    for (int64_t i = 0; i < count; i += kLanes) {
        prefetch(weight + i);
        const Lanes<double> w = load_as_double(weight + i);
        if (exp_avg) {
            prefetch(exp_avg + i);
            prefetch(exp_avg_sq + i);
            const Lanes<T> u =
                raw_update(Lanes<T>::load(exp_avg + i), Lanes<T>::load(exp_avg_sq + i), scaled_eps);
            sums.add(w, to_double(u));
        } else {
            sums.add(w);
        }
    }
    squares = sums;
}

template <class T>
Sums sum_chunk_as(const Tensor& tensor, int64_t begin, int64_t chunk) {
    const bool has_moments = tensor.exp_avg.data != nullptr;
    const Lanes<T> scaled_eps{T(tensor.scaled_eps)};
    Running<T> running;
    Block<T> weight, exp_avg, exp_avg_sq;
    for (int64_t done = 0; done < chunk; done += kBlock) {
        const int64_t count = chunk - done < kBlock ? chunk - done : kBlock;
        weight.open(tensor.weight, begin + done, count, T(0));
        if (has_moments) {
            exp_avg.open(tensor.exp_avg, begin + done, count, T(0));
            exp_avg_sq.open(tensor.exp_avg_sq, begin + done, count, T(1));
        }
        add_squares(running.squares, weight.entries, exp_avg.entries, exp_avg_sq.entries, count, scaled_eps);
        add_padded_weights(running, weight.entries, count);
    }
    Sums sums;
    finish(running, sums);
    return sums;
}

Sums sum_chunk(const Tensor& tensor, int64_t begin, int64_t count) {
    const bool wide = is_double(tensor.weight) || is_double(tensor.exp_avg) || is_double(tensor.exp_avg_sq);
    return wide ? sum_chunk_as<double>(tensor, begin, count) : sum_chunk_as<float>(tensor, begin, count);
}
