// What tests/test_entry_header.py calls of the shared headers: the mathematics that a thread of a GPU does,
// compiled for this processor. Arrays hold n entries; a record is a row of float64.
#include <cstring>

#include "../csrc/cuda/scalar.h"
#include "../csrc/step.h"

namespace {

using namespace weibull;

// The numbers of a step whose decays are plain products.
template <class X>
struct Numbers {
    X gain1, gain2, beta2, rate, decay_factor;
    bool near_mean;

    X faded(X v) const { return beta2 * v; }
    X decayed(X w) const { return decay_factor * w; }
};

template <class X>
void raw_update(int n, const X* m, const X* v, X scaled_eps, X* u) {
    for (int i = 0; i < n; ++i) u[i] = scalar::raw_update(m[i], v[i], scaled_eps);
}

template <class X>
void lerp(int n, const X* mean, const X* input, X gain, bool near_mean, X* out) {
    for (int i = 0; i < n; ++i) out[i] = scalar::lerp(mean[i], input[i], gain, near_mean);
}

// The moments and weights are stepped in place; `numbers` are those of Numbers.
template <class X>
void step(int n, const X* numbers, bool near_mean, X scaled_eps, const X* g, X* m, X* v, X* w) {
    const Numbers<X> set{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], near_mean};
    for (int i = 0; i < n; ++i) {
        scalar::step_moments(set, g[i], m[i], v[i]);
        w[i] = scalar::step_weight(set, w[i], scalar::raw_update(m[i], v[i], scaled_eps));
    }
}

template <class X>
void log1p(int n, const X* r, X* log) {
    for (int i = 0; i < n; ++i) log[i] = scalar::log1p_polynomial(r[i]);
}

// Σln|w| and Σln²|w| of positive finite entries, added up in X.
template <class X>
void logs(int n, const X* w, double* sums) {
    using Bits = scalar::Int<X>;
    scalar::Logs<X> running;
    for (int i = 0; i < n; ++i) {
        const Bits bits = scalar::bit_cast<Bits>(w[i]);
        const bool is_subnormal = bits < scalar::Format<X>::kSmallestNormal;
        running.template add<X>(is_subnormal ? scalar::bit_cast<Bits>(X(bits)) : bits,
                                is_subnormal ? Bits(scalar::Format<X>::kSubnormalExponent) : Bits(0));
    }
    scalar::Logs<double> total;
    total.add(running);
    sums[0] = scalar::log_sum(total);
    sums[1] = scalar::log_sq_sum(total);
}

Hyperparameters hyperparameters(const double* row) {
    return {row[0], row[1], row[2], row[3], row[4], row[5], row[6]};
}

StepSums step_sums(const double* row) {
    StepSums sums;
    sums.weight_update = row[0], sums.update_sq = row[1], sums.weight_sq = row[2];
    sums.log_sum = row[3], sums.log_sq_sum = row[4], sums.max_abs = row[5];
    sums.zero_count = int64_t(row[6]), sums.non_finite_count = int64_t(row[7]);
    sums.change = row[8];
    return sums;
}

}  // namespace

#define WK_TEST(X)                                                                                       \
    void raw_update_##X(int n, const X* m, const X* v, X scaled_eps, X* u) {                             \
        raw_update(n, m, v, scaled_eps, u);                                                              \
    }                                                                                                    \
    void lerp_##X(int n, const X* mean, const X* input, X gain, bool near_mean, X* out) {                \
        lerp(n, mean, input, gain, near_mean, out);                                                      \
    }                                                                                                    \
    void step_##X(int n, const X* numbers, bool near_mean, X scaled_eps, const X* g, X* m, X* v, X* w) { \
        step(n, numbers, near_mean, scaled_eps, g, m, v, w);                                             \
    }                                                                                                    \
    void log1p_##X(int n, const X* r, X* log) { log1p(n, r, log); }                                      \
    void logs_##X(int n, const X* w, double* sums) { logs(n, w, sums); }

extern "C" {

WK_TEST(float)
WK_TEST(double)

void corrections(const double* set, double step, double* root_and_scale) {
    const Corrections found = corrections_of(hyperparameters(set), step);
    root_and_scale[0] = found.root, root_and_scale[1] = found.scale;
}

void add_up(double* total, const double* part) {
    StepSums sums = step_sums(total);
    sums.add(step_sums(part));
    const double row[] = {
        sums.weight_update, sums.update_sq, sums.weight_sq,          sums.log_sum,
        sums.log_sq_sum,    sums.max_abs,   double(sums.zero_count), double(sums.non_finite_count),
        sums.change};
    std::memcpy(total, row, sizeof row);
}

void book_step(double* row, const double* sums, const double* set, double scale, double step) {
    static_assert(sizeof(LedgerRow) == 14 * sizeof(double), "a row of the ledger is 14 float64");
    LedgerRow ledger;
    std::memcpy(&ledger, row, sizeof ledger);
    book(ledger, step_sums(sums), hyperparameters(set), scale, step);
    std::memcpy(row, &ledger, sizeof ledger);
}

void after_step(double* row, const double* sums, const double* set, double step) {
    const LedgerRow found = row_after_step(step_sums(sums), hyperparameters(set), step);
    std::memcpy(row, &found, sizeof found);
}

}  // extern "C"
