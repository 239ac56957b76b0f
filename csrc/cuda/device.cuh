// The device that a launch goes to, and its blocks.
#pragma once

#include <stdexcept>
#include <string>

#include "launch.h"

namespace weibull {
namespace cuda {

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// While this lives, launches go to `device`.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "the current CUDA device cannot be read");
        if (before_ != device) check(cudaSetDevice(device), "the CUDA device cannot be used");
        changed_ = before_ != device;
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

// One for each chunk unless it is said how many: the device hands them out as it gets through them,
// which is faster than a share for each of those that fit at once, since not all of them are equally fast.
inline int blocks_of(const Launch& launch, const Table& table) {
    return launch.blocks > 0 && launch.blocks < table.chunks ? launch.blocks : table.chunks;
}

}  // namespace cuda
}  // namespace weibull
