// What the kernels are launched with. Nothing waits for the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "../step.h"
#include "table.h"

namespace weibull {
namespace cuda {

// The compute capabilities, times ten, that there is code for, from the least on; of the last there is PTX
// too, from which the driver compiles for GPUs that come later.
std::vector<int> architectures();

// The version of CUDA that this was built with, and the one that the driver is for, 0 where there is none; as
// 13000 for 13.0.
int runtime_version();
int driver_version();

// Where a launch goes. `blocks` is how many share out the chunks, 0 for one each; the result does
// not depend on it.
struct Launch {
    int device;
    cudaStream_t stream;
    int blocks;
};

// The numbers that the update of each row is made with: ε·√(1−β₂ᵗ) by row, or, where that is null,
// the settings of the groups and each row's own count of steps.
struct UpdateNumbers {
    const double* scaled_eps;
    const Hyperparameters* sets;
};

constexpr int kSumColumns = 8;

// Writes the sums of P tensors to `sums` [P, kSumColumns], the update's multiplied by `scales` [P]; and
// adds to `histograms` [P, kBins], null where nobody asked. `partials` has room for kWarps Sums a chunk.
void launch_sums(const Launch& launch, const Table& table, const UpdateNumbers& numbers, bool any_wide,
                 bool any_narrow, Sums* partials, const double* scales, double* sums,
                 unsigned long long* histograms);

// The same, and the forces of the last step of each tensor to `ledger` [P].
void launch_forces(const Launch& launch, const Table& table, const Hyperparameters* sets, bool any_wide,
                   bool any_narrow, Sums* partials, LedgerRow* ledger, unsigned long long* histograms);

// What is new in a step of AdamW: where the gradients lie [P], and a gradient scaler's numbers, null
// without one; where *found_inf is set nothing happens.
struct Step {
    const int64_t* grads;
    const Hyperparameters* sets;
    const float* grad_scale;
    const float* found_inf;
};

// Steps P tensors and books it in `ledger`, null where nobody asked; `partials` has room for
// kWarps StepSums a chunk where there is a ledger.
void launch_adamw(const Launch& launch, const Table& table, const Step& step, bool any_wide, bool any_narrow,
                  StepSums* partials, LedgerRow* ledger);

}  // namespace cuda
}  // namespace weibull
