// The device that a launch goes to, and how many blocks it holds.
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

// As many blocks of a kernel as fit on the device at once, but no more than there is work for.
template <auto kKernel>
int blocks_of(const Launch& launch, int chunks) {
    constexpr int kDevices = 64;
    static int resident[kDevices];  // by device; 0 until asked, and the same whoever asks
    int fit = launch.blocks;
    if (fit <= 0) {
        int& known = resident[launch.device % kDevices];
        if (!known) {
            int processors = 0, each = 0;
            check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, launch.device),
                  "the CUDA device does not tell its size");
            check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kKernel, kThreads, 0),
                  "the kernels do not fit this CUDA device");
            known = processors * each;
        }
        fit = known;
    }
    return fit < chunks ? fit : chunks;
}

}  // namespace cuda
}  // namespace weibull
