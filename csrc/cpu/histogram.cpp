#include "histogram.h"

#include <algorithm>
#include <cstring>

namespace weibull {
namespace {

constexpr int64_t kBlock = 512;
constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

// The bin of a float32's bits; kBins and more for those of infinities and NaN.
constexpr uint32_t bin_of(uint32_t bits) { return (bits & kMagnitude) >> (23 - kBinBits); }

// The bits of some float32 in the same bin; for 0 and for non-finite numbers, 0 and infinity.
uint32_t bits_in_bin_of(double value) {
    const double magnitude = value < 0 ? -value : value;
    if (magnitude == 0) return 0;
    if (!(magnitude <= 1.7976931348623157e308)) return kInfinity;
    if (magnitude < 0x1p-126) return std::max(uint32_t(magnitude * 0x1p149), uint32_t(1));
    uint64_t bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    const uint64_t rebased = (bits >> (52 - 23)) - (uint64_t(1023 - 127) << 23);
    return uint32_t(std::min<uint64_t>(rebased, kInfinity - 1));
}

// A half's magnitude laid out as the bits of the float32 of the same value.
uint32_t widen_float16(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;  // rebases the exponent, of subnormal halves too
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return magnitude >= 0x7c00u << 13 ? kInfinity : bits;
}

template <class Stored>
Stored entry(const Column& column, int64_t i) {
    Stored value;
    std::memcpy(&value, static_cast<const char*>(column.data) + i * int64_t(sizeof value), sizeof value);
    return value;
}

int64_t entry_size(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// `count` entries from `begin` as the bits of float32 numbers in the same bins: in place where
// the column is stored so, else in `buffer`.
const uint32_t* bits_of(const Column& column, int64_t begin, int64_t count, uint32_t* buffer) {
    switch (column.dtype) {
        case Dtype::kFloat32:
            return static_cast<const uint32_t*>(column.data) + begin;
        case Dtype::kFloat64:
            for (int64_t i = 0; i < count; ++i) buffer[i] = bits_in_bin_of(entry<double>(column, begin + i));
            break;
        case Dtype::kBfloat16:
            for (int64_t i = 0; i < count; ++i)
                buffer[i] = uint32_t(entry<uint16_t>(column, begin + i)) << 16;
            break;
        case Dtype::kFloat16:
            for (int64_t i = 0; i < count; ++i) buffer[i] = widen_float16(entry<uint16_t>(column, begin + i));
            break;
    }
    return buffer;
}

int64_t zeros_among(const uint32_t* bits, int64_t count) {
    int32_t zeros = 0;
    for (int64_t i = 0; i < count; ++i) zeros += (bits[i] & kMagnitude) == 0;
    return zeros;
}

}  // namespace

void Histogram::add(const Column& column, int64_t begin, int64_t count, int64_t* counts, bool whole) {
    uint32_t buffer[kBlock];
    // A 32-bit counter must be emptied before it can overflow.
    if (!whole && (row_ != counts || gathered_ > int64_t(1) << 31)) flush();
    if (!whole && tables_.empty()) tables_.assign(kTables * kStride, 0);
    const int64_t size = entry_size(column.dtype);
    for (int64_t done = 0; done < count; done += kBlock) {
        const int64_t n = std::min(kBlock, count - done);
        const uint32_t* bits = bits_of(column, begin + done, n, buffer);
        if (whole) {
            for (int64_t i = 0; i < n; ++i)
                if ((bits[i] & kMagnitude) != 0 && bin_of(bits[i]) < kBins) ++counts[bin_of(bits[i])];
        } else {
            count_block(bits, n, reinterpret_cast<uintptr_t>(column.data) + (begin + done + count) * size,
                        size);
        }
    }
    if (whole) return;
    row_ = counts;
    gathered_ += count;
}

// Memory would stand idle while entries are counted, so meanwhile the weights of the next chunk
// are asked for: at `next`, `step` bytes an entry. It may lie past the end; asking is harmless.
void Histogram::count_block(const uint32_t* bits, int64_t count, uintptr_t next, int64_t step) {
    uint32_t* const t = tables_.data();
    const auto in_first_bin = [t] { return t[0] + t[kStride] + t[2 * kStride] + t[3 * kStride]; };
    const uint32_t before = in_first_bin();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __builtin_prefetch(reinterpret_cast<const void*>(next + i * step), 0, 2);
        for (int k = 0; k < 16; k += 4) {
            uint64_t pair[2];  // two entries to a load
            std::memcpy(pair, bits + i + k, sizeof pair);
            ++t[bin_of(uint32_t(pair[0]))];
            ++t[bin_of(uint32_t(pair[0] >> 32)) + kStride];
            ++t[bin_of(uint32_t(pair[1])) + 2 * kStride];
            ++t[bin_of(uint32_t(pair[1] >> 32)) + 3 * kStride];
        }
    }
    for (; i < count; ++i) ++t[bin_of(bits[i])];
    // Zeros fall into the first bin: they are looked for only where something did.
    if (in_first_bin() != before) zeros_ += zeros_among(bits, count);
}

void Histogram::flush() {
    if (!row_) return;
    constexpr int kOctave = 1 << kBinBits;
    for (int octave = 0; octave < 256; ++octave) {
        uint32_t* const t = tables_.data() + octave * kOctave;
        uint32_t used = 0;
        for (int k = 0; k < kTables; ++k)
            for (int i = 0; i < kOctave; ++i) used |= t[k * kStride + i];
        if (!used) continue;  // as most are
        for (int i = 0; i < kOctave; ++i) {
            int64_t count = octave || i ? 0 : -zeros_;
            for (int k = 0; k < kTables; ++k) count += t[k * kStride + i];
            const int bin = octave * kOctave + i;
            if (count && bin < kBins) __atomic_fetch_add(&row_[bin], count, __ATOMIC_RELAXED);
        }
        for (int k = 0; k < kTables; ++k) std::fill_n(t + k * kStride, kOctave, 0);
    }
    row_ = nullptr;
    gathered_ = zeros_ = 0;
}

}  // namespace weibull
