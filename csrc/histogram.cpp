#include "histogram.h"

#include <algorithm>
#include <cstring>

namespace weibull {
namespace {

// Past the last bin: zeros and non-finite entries are sent to where nobody reads.
constexpr uint32_t kLeftOut = kBins;
constexpr int64_t kBlock = 512;

uint32_t bin_of_float32(uint32_t bits) {
    const uint32_t magnitude = bits & 0x7fffffff;
    const uint32_t bin = magnitude >> (23 - kBinBits);
    return magnitude == 0 || bin > kLeftOut ? kLeftOut : bin;
}

uint32_t bin_of_float64(double value) {
    const double magnitude = value < 0 ? -value : value;
    if (!(magnitude > 0) || magnitude > 1.7976931348623157e308) return kLeftOut;
    if (magnitude < 0x1p-126) return uint32_t(magnitude * 0x1p149) >> (23 - kBinBits);
    uint64_t bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    const int64_t bin = int64_t(bits >> (52 - kBinBits)) - (int64_t(1023 - 127) << kBinBits);
    return uint32_t(std::min<int64_t>(bin, kBins - 1));
}

// A half's bits laid out as those of the float32 of the same value.
uint32_t widen_float16(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
    if (magnitude >= 0x7c00u << 13) return 0x7f800000;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class Stored>
Stored entry(const Column& column, int64_t i) {
    Stored value;
    std::memcpy(&value, static_cast<const char*>(column.data) + i * int64_t(sizeof value), sizeof value);
    return value;
}

void bins_of(const Column& column, int64_t begin, int64_t count, uint32_t* bins) {
    switch (column.dtype) {
        case Dtype::kFloat32:
            for (int64_t i = 0; i < count; ++i) bins[i] = bin_of_float32(entry<uint32_t>(column, begin + i));
            break;
        case Dtype::kFloat64:
            for (int64_t i = 0; i < count; ++i) bins[i] = bin_of_float64(entry<double>(column, begin + i));
            break;
        case Dtype::kBfloat16:
            for (int64_t i = 0; i < count; ++i)
                bins[i] = bin_of_float32(uint32_t(entry<uint16_t>(column, begin + i)) << 16);
            break;
        case Dtype::kFloat16:
            for (int64_t i = 0; i < count; ++i)
                bins[i] = bin_of_float32(widen_float16(entry<uint16_t>(column, begin + i)));
            break;
    }
}

}  // namespace

void Histogram::add(const Column& column, int64_t begin, int64_t count, int64_t* counts, bool whole) {
    uint32_t bins[kBlock];
    if (whole) {
        for (int64_t done = 0; done < count; done += kBlock) {
            const int64_t n = std::min(kBlock, count - done);
            bins_of(column, begin + done, n, bins);
            for (int64_t i = 0; i < n; ++i)
                if (bins[i] < kLeftOut) ++counts[bins[i]];
        }
        return;
    }
    // A 32-bit counter must be emptied before it can overflow.
    if (row_ != counts || gathered_ > int64_t(1) << 31) flush();
    if (tables_.empty()) tables_.assign(kTables * kStride, 0);
    row_ = counts;
    gathered_ += count;
    uint32_t *first = tables_.data(), *second = first + kStride;
    for (int64_t done = 0; done < count; done += kBlock) {
        const int64_t n = std::min(kBlock, count - done);
        bins_of(column, begin + done, n, bins);
        int64_t i = 0;
        for (; i + 2 <= n; i += 2) {
            ++first[bins[i]];
            ++second[bins[i + 1]];
        }
        if (i < n) ++first[bins[i]];
    }
}

void Histogram::flush() {
    if (!row_) return;
    uint32_t *first = tables_.data(), *second = first + kStride;
    for (int bin = 0; bin < kBins; ++bin) {
        if (const int64_t count = int64_t(first[bin]) + second[bin])
            __atomic_fetch_add(&row_[bin], count, __ATOMIC_RELAXED);
    }
    std::fill(tables_.begin(), tables_.end(), 0);
    row_ = nullptr;
    gathered_ = 0;
}

}  // namespace weibull
