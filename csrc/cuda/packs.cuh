// A few neighbouring entries of a column at a time, as one thread loads and stores them, whatever the
// dtype: a pack of kCount, 16 or 32 bytes of the widest dtype.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../columns.h"
#include "scalar.h"
#include "tuning.h"

namespace weibull {
namespace cuda {

// Hides from the compiler that a number never changes: of a loop it would make a copy for every
// combination of such numbers, and of those copies more for the next.
__device__ __forceinline__ int hidden(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

// Where a column of a tensor lies.
struct Memory {
    char* data;
    Dtype dtype;

    // From entry `begin` on of the column at an address.
    __device__ Memory(int64_t address, Dtype dtype, int64_t begin)
        : data(reinterpret_cast<char*>(address)), dtype(dtype) {
        data += begin * entry_bytes();
    }
    // As a loop is to use it.
    __device__ __forceinline__ Memory in_loop() const {
        return {reinterpret_cast<int64_t>(data), Dtype(hidden(int(dtype))), 0};
    }
    __device__ int entry_bytes() const {
        return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
    }
    __device__ char* at(int entry) const { return data + entry * entry_bytes(); }
};

__device__ __forceinline__ float from_bfloat16(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float from_float16(uint32_t bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
// Rounded to the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ uint32_t to_bfloat16(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ uint32_t to_float16(float value) {
    return __half_as_ushort(__float2half_rn(value));
}

// Reads and writes of global memory: an address that comes from a table does not tell where it points. What
// is only read need not stay in the caches; what is written in its place should.
enum class Use { kRead, kChange };

template <Use kUse, class Word>
__device__ __forceinline__ Word read(const char* at) {
    const Word* word = reinterpret_cast<const Word*>(at);
    return kUse == Use::kRead ? __ldcs(word) : __ldca(word);
}
template <class Word>
__device__ __forceinline__ void write(char* at, Word word) {
    __stwb(reinterpret_cast<Word*>(at), word);
}

// The bytes of a pack as they lie in memory. Columns are loaded so before anything is done with them:
// then the loads of all are under way together.
struct Raw {
    uint32_t word[8];
};

// Of an address that is a multiple of the 16 bytes that are loaded at once, or of the 8 or 4 of a small pack.
template <int kCount, Use kUse>
__device__ __forceinline__ Raw load_raw(const Memory& from, int entry) {
    const char* at = from.at(entry);
    const int bytes = kCount * from.entry_bytes();
    Raw raw;
    if (bytes == 8) {
        const uint2 part = read<kUse, uint2>(at);
        raw.word[0] = part.x, raw.word[1] = part.y;
    } else if (bytes == 4) {
        raw.word[0] = read<kUse, uint32_t>(at);
    } else {
        const uint4 low = read<kUse, uint4>(at);
        raw.word[0] = low.x, raw.word[1] = low.y, raw.word[2] = low.z, raw.word[3] = low.w;
        if (bytes == 32) {
            const uint4 high = read<kUse, uint4>(at + 16);
            raw.word[4] = high.x, raw.word[5] = high.y, raw.word[6] = high.z, raw.word[7] = high.w;
        }
    }
    return raw;
}

template <int kCount>
__device__ __forceinline__ void store_raw(const Memory& to, int entry, const Raw& raw) {
    char* at = to.at(entry);
    const int bytes = kCount * to.entry_bytes();
    if (bytes == 8) {
        write(at, make_uint2(raw.word[0], raw.word[1]));
    } else if (bytes == 4) {
        write(at, raw.word[0]);
    } else {
        write(at, make_uint4(raw.word[0], raw.word[1], raw.word[2], raw.word[3]));
        if (bytes == 32) write(at + 16, make_uint4(raw.word[4], raw.word[5], raw.word[6], raw.word[7]));
    }
}

template <class T, int kCount>
__device__ __forceinline__ void widen(const Raw& raw, Dtype dtype, T (&to)[kCount]) {
    if (dtype == Dtype::kBfloat16) {
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            to[i] = T(from_bfloat16(i % 2 ? raw.word[i / 2] >> 16 : raw.word[i / 2] & 0xffff));
    } else if (dtype == Dtype::kFloat16) {
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            to[i] = T(from_float16(i % 2 ? raw.word[i / 2] >> 16 : raw.word[i / 2] & 0xffff));
    } else if (sizeof(T) == 4 || dtype == Dtype::kFloat32) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) to[i] = T(__uint_as_float(raw.word[i]));
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            to[i] = T(__hiloint2double(int(raw.word[2 * i % 8 + 1]), int(raw.word[2 * i % 8])));
    }
}

// Rounded to what the column holds.
template <class T, int kCount>
__device__ __forceinline__ Raw narrowed(const T (&from)[kCount], Dtype dtype) {
    Raw raw;
    if (dtype == Dtype::kBfloat16) {
#pragma unroll
        for (int i = 0; i < kCount; i += 2)
            raw.word[i / 2] = to_bfloat16(float(from[i])) | to_bfloat16(float(from[i + 1])) << 16;
    } else if (dtype == Dtype::kFloat16) {
#pragma unroll
        for (int i = 0; i < kCount; i += 2)
            raw.word[i / 2] = to_float16(float(from[i])) | to_float16(float(from[i + 1])) << 16;
    } else if (sizeof(T) == 4 || dtype == Dtype::kFloat32) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) raw.word[i] = __float_as_uint(float(from[i]));
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            raw.word[2 * i % 8] = uint32_t(__double2loint(double(from[i])));
            raw.word[2 * i % 8 + 1] = uint32_t(__double2hiint(double(from[i])));
        }
    }
    return raw;
}

// One entry.
template <class T, Use kUse>
__device__ __forceinline__ T load_entry(const Memory& from, int entry) {
    const char* at = from.at(entry);
    if (sizeof(T) == 8 && from.dtype == Dtype::kFloat64) return T(read<kUse, double>(at));
    if (from.dtype == Dtype::kFloat32) return T(read<kUse, float>(at));
    const uint32_t half = read<kUse, unsigned short>(at);
    return T(from.dtype == Dtype::kBfloat16 ? from_bfloat16(half) : from_float16(half));
}

template <class T>
__device__ __forceinline__ void store_entry(const Memory& to, int entry, T value) {
    char* at = to.at(entry);
    if (sizeof(T) == 8 && to.dtype == Dtype::kFloat64)
        write(at, double(value));
    else if (to.dtype == Dtype::kFloat32)
        write(at, float(value));
    else
        write(at, static_cast<unsigned short>(to.dtype == Dtype::kBfloat16 ? to_bfloat16(float(value))
                                                                           : to_float16(float(value))));
}

// How many neighbours are taken at once, and whether they lie so that they are loaded as a pack.
template <int kNeighbours, bool kIsAligned>
struct Taken {
    static constexpr int kCount = kNeighbours;
    static constexpr bool kAligned = kIsAligned;
};

// What was fetched of a column.
template <class T, class How>
struct Fetched {
    typename std::conditional<How::kAligned, Raw, T[How::kCount]>::type held;
    Dtype dtype;
};

template <class T, class How, Use kUse>
__device__ __forceinline__ Fetched<T, How> fetch(const Memory& from, int entry) {
    Fetched<T, How> found;
    found.dtype = from.dtype;
    if constexpr (How::kAligned) {
        found.held = load_raw<How::kCount, kUse>(from, entry);
    } else {
#pragma unroll
        for (int k = 0; k < How::kCount; ++k) found.held[k] = load_entry<T, kUse>(from, entry + k);
    }
    return found;
}

template <class T, class How>
__device__ __forceinline__ void widen(const Fetched<T, How>& from, T (&to)[How::kCount]) {
    if constexpr (How::kAligned) {
        widen(from.held, from.dtype, to);
    } else {
#pragma unroll
        for (int k = 0; k < How::kCount; ++k) to[k] = from.held[k];
    }
}

// The other way. What memory rounds off goes from the entries too.
template <class T, class How>
__device__ __forceinline__ void put(const Memory& to, int entry, T (&from)[How::kCount]) {
    if constexpr (How::kAligned) {
        const Raw raw = narrowed(from, to.dtype);
        store_raw<How::kCount>(to, entry, raw);
        widen(raw, to.dtype, from);
    } else {
#pragma unroll
        for (int k = 0; k < How::kCount; ++k) {
            store_entry(to, entry + k, from[k]);
            from[k] = load_entry<T, Use::kChange>(to, entry + k);
        }
    }
}

// Calls take(how, columns, first entry) for what a thread has of a chunk: packs of kCount, or of kLoose where
// memory is not aligned, then the entries that are left.
template <int kCount, int kLoose, class Columns, class Take>
__device__ __forceinline__ void for_each_pack(const Columns& columns, int count, const Take& take) {
    const int each = columns.aligned ? kCount : kLoose, whole = count / each * each;
    if (columns.aligned) {
#pragma unroll 1
        for (int i = threadIdx.x * kCount; i < whole; i += kThreads * kCount)
            take(Taken<kCount, true>{}, columns.in_loop(), i);
    } else {
#pragma unroll 1
        for (int i = threadIdx.x * kLoose; i < whole; i += kThreads * kLoose)
            take(Taken<kLoose, false>{}, columns.in_loop(), i);
    }
    if (const int i = whole + threadIdx.x; i < count) take(Taken<1, false>{}, columns.in_loop(), i);
}

}  // namespace cuda
}  // namespace weibull
