// Columns of memory in blocks that lie in the L1 cache. Included once per instruction set, inside
// its namespace.

// Short enough that the float32 sums of a block keep their digits (see Logs) and that six widened
// columns stay in the L1 cache.
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

template <class T>
void widen(const Column& column, int64_t begin, int64_t count, T* to) {
    if (column.dtype == Dtype::kBfloat16) {
        const uint16_t* from = static_cast<const uint16_t*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = from_bfloat16(from[i]);
    } else if (column.dtype == Dtype::kFloat16) {
        const uint16_t* from = static_cast<const uint16_t*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = from_float16(from[i]);
    } else if (column.dtype == Dtype::kFloat32) {
        const float* from = static_cast<const float*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    } else {
        const double* from = static_cast<const double*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = T(from[i]);
    }
}

// Rounded to the nearest, ties to even; a NaN stays one.
WK_INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return uint16_t(value == value ? rounded : (bits >> 16) | 0x0040);
}

// Likewise. Adding ½ leaves a half's subnormal in the last bits, rounded by the addition.
WK_INLINE uint16_t to_float16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t subnormal;
    std::memcpy(&subnormal, &shifted, sizeof subnormal);
    subnormal -= 0x3f000000;
    const uint32_t normal = (magnitude - 0x38000000 + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude < 0x47800000 ? half : 0x7c00;
    return uint16_t(sign | (magnitude > 0x7f800000 ? 0x7e00 : half));
}

template <class T>
void narrow(const Column& column, int64_t begin, int64_t count, const T* from) {
    if (column.dtype == Dtype::kBfloat16) {
        uint16_t* to = static_cast<uint16_t*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(float(from[i]));
    } else if (column.dtype == Dtype::kFloat16) {
        uint16_t* to = static_cast<uint16_t*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = to_float16(float(from[i]));
    } else if (column.dtype == Dtype::kFloat32) {
        float* to = static_cast<float*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]);
    } else {
        double* to = static_cast<double*>(column.data) + begin;
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
}

WK_INLINE bool is_double(const Column& column) { return column.data && column.dtype == Dtype::kFloat64; }

// A block of a column as numbers of type T, filled up to whole lanes: in place where it is stored
// so and whole, else in a buffer.
template <class T>
class Block {
public:
    T* entries = nullptr;

    WK_INLINE Block() {}

    WK_INLINE void open(const Column& column, int64_t begin, int64_t count, T padding) {
        constexpr Dtype kNative = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
        narrow_ = column.dtype != kNative;
        if (!narrow_ && count % kLanes == 0) {
            entries = static_cast<T*>(column.data) + begin;
            return;
        }
        entries = buffer_;
        widen(column, begin, count, buffer_);
        for (int64_t i = count; i % kLanes; ++i) buffer_[i] = padding;
    }

    // What was changed goes to memory; what memory rounds off goes from the entries here too.
    WK_INLINE void close(const Column& column, int64_t begin, int64_t count) {
        if (entries != buffer_) return;
        narrow(column, begin, count, buffer_);
        if (narrow_) widen(column, begin, count, buffer_);
    }

private:
    alignas(64) T buffer_[kBlock];
    bool narrow_;
};
