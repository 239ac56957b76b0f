// The part of the DLPack 1.3 exchange standard that reads a tensor without owning it. Declared here because
// it is a standard of C, not of torch: one build serves every version of torch that speaks it.
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace weibull {

struct DLVersion {
    uint32_t major, minor;
};

struct DLDevice {
    int32_t type, index;
};

struct DLDataType {
    uint8_t code, bits;
    uint16_t lanes;
};

enum DLDeviceType : int32_t { kDLCPU = 1 };
enum DLDataTypeCode : uint8_t { kDLFloat = 2 };

struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;  // in entries
    uint64_t byte_offset;
};

struct DLExchangeHeader {
    DLVersion version;
    DLExchangeHeader* previous;  // of an older major version, or nothing
};

struct DLExchange {
    DLExchangeHeader header;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    // Fills `out`, which is valid until anything else runs; -1 with a Python exception where it cannot.
    int (*tensor_from_object)(void* object, DLTensor* out);
    void* current_stream;
};

constexpr uint32_t kDLMajor = 1, kDLMinor = 3;
constexpr char kDLCapsule[] = "dlpack_exchange_api";

// As the standard lays them out on every machine that torch runs on.
static_assert(sizeof(DLTensor) == 48 && sizeof(DLExchangeHeader) == 16 && sizeof(DLExchange) == 56);

}  // namespace weibull
