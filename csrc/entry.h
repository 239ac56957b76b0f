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

// ln(1+r) for r in [−0.25, 0.5), to 3.1e-8 and exactly 0 at 0: the polynomial of degree 8 through
// the origin with the smallest largest error on that interval.
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
