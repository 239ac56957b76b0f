// What this build was made for.
#include "launch.h"

namespace weibull {
namespace cuda {

std::vector<int> architectures() {
    std::vector<int> found;
    for (const int architecture : {__CUDA_ARCH_LIST__}) found.push_back(architecture / 10);
    return found;
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace cuda
}  // namespace weibull
