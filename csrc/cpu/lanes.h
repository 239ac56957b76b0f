// Sixteen entries of a tensor held side by side, in as many registers as the instruction set
// needs. Every sum keeps sixteen running lanes whatever the register's width, so AVX2 and
// AVX-512 add the same numbers in the same order and return the same bits.
//
// Included once per instruction set, inside that set's namespace, after its register width
// WK_VECTOR_BYTES and the operations on one register that need its intrinsics. It includes nothing itself:
// a standard inline function compiled here for AVX-512 could be the copy the linker keeps for
// everybody.

constexpr int kLanes = 16;

template <class T>
struct Lanes {
    static constexpr int kWidth = WK_VECTOR_BYTES / sizeof(T);
    static constexpr int kParts = kLanes / kWidth;
    typedef T Vector __attribute__((vector_size(WK_VECTOR_BYTES)));

    Vector part[kParts];

    Lanes() = default;
    WK_INLINE Lanes(T value) {
        for (int k = 0; k < kParts; ++k) part[k] = value - Vector{};
    }
    static WK_INLINE Lanes load(const T* from) {
        Lanes lanes;  // a register at a time: copied whole it would pass through the stack
        for (int k = 0; k < kParts; ++k) std::memcpy(&lanes.part[k], from + k * kWidth, sizeof(Vector));
        return lanes;
    }
    WK_INLINE void store(T* to) const {
        for (int k = 0; k < kParts; ++k) std::memcpy(to + k * kWidth, &part[k], sizeof(Vector));
    }
};

#define WK_LANEWISE(OP)                                                                  \
    template <class T>                                                                   \
    WK_INLINE Lanes<T> operator OP(const Lanes<T>& a, const Lanes<T>& b) {               \
        Lanes<T> out;                                                                    \
        for (int k = 0; k < Lanes<T>::kParts; ++k) out.part[k] = a.part[k] OP b.part[k]; \
        return out;                                                                      \
    }
WK_LANEWISE(+)
WK_LANEWISE(-)
WK_LANEWISE(*)
WK_LANEWISE(/)
WK_LANEWISE(&)
WK_LANEWISE(|)
#undef WK_LANEWISE

template <class T>
WK_INLINE Lanes<T> negated(const Lanes<T>& a) {
    Lanes<T> out;
    for (int k = 0; k < Lanes<T>::kParts; ++k) out.part[k] = -a.part[k];
    return out;
}

// The larger of two numbers; b where one is NaN.
template <class T>
WK_INLINE Lanes<T> maximum(const Lanes<T>& a, const Lanes<T>& b) {
    Lanes<T> out;
    for (int k = 0; k < Lanes<T>::kParts; ++k) out.part[k] = a.part[k] > b.part[k] ? a.part[k] : b.part[k];
    return out;
}

// Comparisons of integers give all ones (-1) where they hold, 0 elsewhere.
template <class Int>
WK_INLINE Lanes<Int> less(const Lanes<Int>& a, const Lanes<Int>& b) {
    Lanes<Int> out;
    for (int k = 0; k < Lanes<Int>::kParts; ++k) out.part[k] = a.part[k] < b.part[k];
    return out;
}

template <class Int>
WK_INLINE Lanes<Int> select(const Lanes<Int>& mask, const Lanes<Int>& yes, const Lanes<Int>& no) {
    Lanes<Int> out;
    for (int k = 0; k < Lanes<Int>::kParts; ++k) out.part[k] = mask.part[k] ? yes.part[k] : no.part[k];
    return out;
}

// The larger of two bit patterns read as unsigned.
template <class Int>
WK_INLINE Lanes<Int> unsigned_maximum(const Lanes<Int>& a, const Lanes<Int>& b) {
    Lanes<Int> out;
    for (int k = 0; k < Lanes<Int>::kParts; ++k) out.part[k] = unsigned_max(a.part[k], b.part[k]);
    return out;
}

template <class Int>
WK_INLINE bool any(const Lanes<Int>& mask) {
    uint64_t words[sizeof mask / 8], found = 0;
    std::memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) found |= word;
    return found != 0;
}

template <int kBits, class Int>
WK_INLINE Lanes<Int> shift_right(const Lanes<Int>& a) {
    Lanes<Int> out;
    for (int k = 0; k < Lanes<Int>::kParts; ++k) out.part[k] = a.part[k] >> kBits;
    return out;
}

template <int kBits, class Int>
WK_INLINE Lanes<Int> shift_left(const Lanes<Int>& a) {
    Lanes<Int> out;
    for (int k = 0; k < Lanes<Int>::kParts; ++k) out.part[k] = a.part[k] << kBits;
    return out;
}

template <class To, class From>
WK_INLINE Lanes<To> bit_cast(const Lanes<From>& from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    Lanes<To> to;
    for (int k = 0; k < Lanes<To>::kParts; ++k) to.part[k] = (typename Lanes<To>::Vector)from.part[k];
    return to;
}

// Conversion lane by lane, to a type of the same size.
template <class To, class From>
WK_INLINE Lanes<To> convert(const Lanes<From>& from) {
    static_assert(sizeof(To) == sizeof(From), "use to_double for twice the size");
    Lanes<To> to;
    for (int k = 0; k < Lanes<To>::kParts; ++k)
        to.part[k] = __builtin_convertvector(from.part[k], typename Lanes<To>::Vector);
    return to;
}

// To double: exact, and twice the registers.
WK_INLINE Lanes<double> to_double(const Lanes<float>& from) {
    Lanes<double> to;
    for (int k = 0; k < Lanes<float>::kParts; ++k) {
        to.part[2 * k] = lower_to_double(from.part[k]);
        to.part[2 * k + 1] = upper_to_double(from.part[k]);
    }
    return to;
}

WK_INLINE Lanes<double> to_double(const Lanes<double>& from) { return from; }

template <class T>
WK_INLINE Lanes<double> load_as_double(const T* from) {
    Lanes<double> to;
    constexpr int kWidth = Lanes<double>::kWidth;
    for (int k = 0; k < Lanes<double>::kParts; ++k) to.part[k] = read_as_double(from + k * kWidth);
    return to;
}

// a·b + c. Fused where the instruction set fuses; where it does not, two roundings.
template <class T>
WK_INLINE Lanes<T> multiply_add(const Lanes<T>& a, const Lanes<T>& b, const Lanes<T>& c) {
    Lanes<T> out;
    for (int k = 0; k < Lanes<T>::kParts; ++k)
        out.part[k] = fused_multiply_add(a.part[k], b.part[k], c.part[k]);
    return out;
}

// The IEEE square root, rounded once: an approximation would move ‖u‖².
template <class T>
WK_INLINE Lanes<T> square_root(const Lanes<T>& a) {
    Lanes<T> out;
    for (int k = 0; k < Lanes<T>::kParts; ++k) out.part[k] = root(a.part[k]);
    return out;
}

template <class T>
WK_INLINE T sum_of_lanes(const Lanes<T>& a) {
    T lane[kLanes];
    a.store(lane);
    T total = 0;
    for (int i = 0; i < kLanes; ++i) total += lane[i];
    return total;
}

template <class T>
WK_INLINE T max_of_lanes(const Lanes<T>& a) {
    T lane[kLanes];
    a.store(lane);
    T top = lane[0];
    for (int i = 1; i < kLanes; ++i) top = lane[i] > top ? lane[i] : top;
    return top;
}
