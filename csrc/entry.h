// The mathematics of one entry, written once for every width and every device: X is a number
// or a pack of numbers that has +, −, ×, ÷, square_root() and multiply_add().
//
// Includes nothing: it is compiled inside the namespace of whoever uses it.

// AdamW's update without its bias corrections: m/(√v + ε·√bc₂). With bc₁ = 1−β₁ᵗ and
// bc₂ = 1−β₂ᵗ the update of torch.optim is u = (√bc₂/bc₁) · raw_update, so the corrections
// leave the loop and multiply the finished sums in double precision.
template <class X>
WK_INLINE X raw_update(const X& exp_avg, const X& exp_avg_sq, const X& scaled_eps) {
    return exp_avg / (square_root(exp_avg_sq) + scaled_eps);
}

// The running mean m + gain·(g − m), taken from the end that is nearer, so that a gain of 1 gives g.
template <class X>
WK_INLINE X lerp(const X& mean, const X& input, const X& gain, bool near_mean) {
    return near_mean ? multiply_add(gain, input - mean, mean)
                     : multiply_add(gain - X(1), input - mean, input);
}

// The moments of an entry after gradient g, and what the weight becomes by the raw update u: a step of
// AdamW. How a device rounds what decay leaves of a number is its own affair, as it is torch's: `n` has
// the numbers of the step, and faded(v) is β₂·v, decayed(w) is c·w.
template <class X, class Numbers>
WK_INLINE void step_moments(const Numbers& n, const X& g, X& m, X& v) {
    m = lerp(m, g, n.gain1, n.near_mean);
    v = multiply_add(n.gain2 * g, g, n.faded(v));
}

template <class X, class Numbers>
WK_INLINE X step_weight(const Numbers& n, const X& w, const X& u) {
    return multiply_add(negated(n.rate), u, n.decayed(w));
}

// ln(1+r) for r in [−0.25, 0.5), to 3.7e-8 (7e-8 in float32) and exactly 0 at 0: the polynomial of degree 8
// through the origin with the smallest largest error on that interval.
template <class X>
WK_INLINE X log1p_polynomial(const X& r) {
    X p = X(-6.299255052e-02f);
    p = multiply_add(p, r, X(1.395170978e-01f));
    p = multiply_add(p, r, X(-1.746329311e-01f));
    p = multiply_add(p, r, X(2.015715113e-01f));
    p = multiply_add(p, r, X(-2.497139249e-01f));
    p = multiply_add(p, r, X(3.332665051e-01f));
    p = multiply_add(p, r, X(-5.000031876e-01f));
    p = multiply_add(p, r, X(1.000000596e+00f));
    return p * r;
}

// How a float splits into 2^exponent · mantissa with mantissa in [0.75, 1.5): around 1, so that
// ln 1 is a small number and not the difference of two.
template <class T>
struct Format;

template <>
struct Format<float> {
    using Int = int32_t;
    static constexpr int kMantissaBits = 23;
    static constexpr Int kMagnitude = 0x7fffffff, kSmallestNormal = 0x00800000, kInfinity = 0x7f800000,
                         kThreeQuarters = 0x3f400000, kOne = 0x3f800000;
    static constexpr int kSubnormalExponent = -149;
};

template <>
struct Format<double> {
    using Int = int64_t;
    static constexpr int kMantissaBits = 52;
    static constexpr Int kMagnitude = 0x7fffffffffffffff, kSmallestNormal = 0x0010000000000000,
                         kInfinity = 0x7ff0000000000000, kThreeQuarters = 0x3fe8000000000000,
                         kOne = 0x3ff0000000000000;
    static constexpr int kSubnormalExponent = -1074;
};

template <class T>
using Int = typename Format<T>::Int;

constexpr double kLn2 = 0.693147180559945309417;

// The running ⟨w,u⟩, ‖u‖² and ‖w‖², in double precision.
template <class X>
struct Squares {
    X weight_update{0.0}, update_sq{0.0}, weight_sq{0.0};

    WK_INLINE Squares() {}  // a constructor left to the compiler misses the target pragma

    WK_INLINE void add(const X& w) { weight_sq = multiply_add(w, w, weight_sq); }

    WK_INLINE void add(const X& w, const X& u) {
        add(w);
        weight_update = multiply_add(w, u, weight_update);
        update_sq = multiply_add(u, u, update_sq);
    }
};

// The running logarithms: ln|w| = e·ln 2 + p with e the exponent and p the logarithm of the mantissa.
// Over a few hundred entries the sums of e and e² are exact in float32, those with p are rounded a
// little; then they go to double. To add e·ln 2 and p entry by entry would round away 4e-6 near
// ln|w| = −70.
template <class X>
struct Logs {
    X e{0}, e_sq{0}, p{0}, p_sq{0}, ep{0};

    WK_INLINE Logs() {}

    // Of the bits of a positive normal number, which stands for itself times 2^scaled_by.
    template <class T, class Bits>
    WK_INLINE void add(const Bits& normal, const Bits& scaled_by) {
        using F = Format<T>;
        const Bits exponent = shift_right<F::kMantissaBits>(normal - Bits(F::kThreeQuarters));
        const X mantissa = bit_cast<T>(normal - shift_left<F::kMantissaBits>(exponent));
        const X exponent_ = convert<T>(exponent + scaled_by);
        const X log = log1p_polynomial(mantissa - X(T(1)));
        e = e + exponent_;
        e_sq = multiply_add(exponent_, exponent_, e_sq);
        p = p + log;
        p_sq = multiply_add(log, log, p_sq);
        ep = multiply_add(exponent_, log, ep);
    }

    template <class Y>
    WK_INLINE void add(const Logs<Y>& part) {
        e = e + to_double(part.e);
        e_sq = e_sq + to_double(part.e_sq);
        p = p + to_double(part.p);
        p_sq = p_sq + to_double(part.p_sq);
        ep = ep + to_double(part.ep);
    }
};

// Σln|w| and Σln²|w| of logarithms added up in double precision.
WK_INLINE double log_sum(const Logs<double>& logs) { return kLn2 * logs.e + logs.p; }
WK_INLINE double log_sq_sum(const Logs<double>& logs) {
    return kLn2 * kLn2 * logs.e_sq + 2 * kLn2 * logs.ep + logs.p_sq;
}
