// What of CUDA the code of one thread uses (csrc/cuda/*.cuh), for a CPU. The threads of a block take
// turns, and each is a warp of its own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#undef __device__
#define __device__

// The thread whose turn it is.
static uint3 threadIdx;

// Global memory. As on a GPU an access must lie in a column that the kernel was given, at a multiple of its
// own size; one that does not is counted, and does nothing.
struct GlobalMemory {
    struct Column {
        uintptr_t begin, end;
    };
    std::vector<Column> columns;
    int64_t faults = 0;

    template <class Word>
    bool holds(const Word* at) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
        if (begin % sizeof(Word) == 0)
            for (const Column& column : columns)
                if (column.begin <= begin && begin + sizeof(Word) <= column.end) return true;
        ++faults;
        return false;
    }
};
static GlobalMemory memory;

template <class Word>
Word __ldcs(const Word* at) {
    Word word{};
    if (memory.holds(at)) memcpy(&word, static_cast<const void*>(at), sizeof word);
    return word;
}
template <class Word>
Word __ldca(const Word* at) {
    return __ldcs(at);
}
template <class Word>
void __stwb(Word* at, Word word) {
    if (memory.holds(at)) memcpy(static_cast<void*>(at), &word, sizeof word);
}
template <class Number>
Number atomicAdd(Number* at, Number added) {
    const Number before = *at;
    *at += added;
    return before;
}

// Numbers as bits.
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are neither added nor lost");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(uint32_t bits) { return same_bits<float>(bits); }
inline uint32_t __float_as_uint(float value) { return same_bits<uint32_t>(value); }
inline int __float_as_int(float value) { return same_bits<int>(value); }
inline double __hiloint2double(int high, int low) {
    return same_bits<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}
inline int __double2hiint(double value) { return int(same_bits<uint64_t>(value) >> 32); }
inline int __double2loint(double value) { return int(same_bits<uint64_t>(value)); }
// Towards zero: the nearest one, or where that lies further out the one before it.
inline float __double2float_rz(double value) {
    const float nearest = float(value);
    return std::fabs(double(nearest)) > std::fabs(value) ? std::nextafter(nearest, 0.0f) : nearest;
}

// Reductions over the lanes of a warp: there is but one, and nothing comes from the others.
template <class Number>
Number __shfl_xor_sync(unsigned, Number, int) {
    return 0;
}
inline int __reduce_add_sync(unsigned, int value) { return value; }
inline uint32_t __reduce_max_sync(unsigned, uint32_t value) { return value; }
