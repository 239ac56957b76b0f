// What Python sees of the kernels for NVIDIA GPUs. Tensors, tables and results come as addresses on the
// device: the extension knows nothing of torch, so one build serves every version of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "launch.h"

namespace py = pybind11;

namespace weibull {
namespace cuda {
namespace {

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

// What every launch is given: the table, which arithmetic its rows have, and where it goes.
struct Call {
    Launch launch;
    Table table;
    bool any_wide, any_narrow;
};

Call call_of(const py::tuple& table, int device, int64_t stream, int blocks) {
    if (table.size() != 6)
        throw std::invalid_argument("table must be (rows, row of chunk, size, chunks, wide, narrow)");
    return {{device, pointer<CUstream_st>(stream), blocks},
            {pointer<const Row>(table[0].cast<int64_t>()), pointer<const int32_t>(table[1].cast<int64_t>()),
             table[2].cast<int>(), table[3].cast<int>()},
            table[4].cast<bool>(),
            table[5].cast<bool>()};
}

void sums(const py::tuple& table, int64_t scaled_eps, int64_t scales, int64_t partials, int64_t sums,
          int64_t histograms, int device, int64_t stream, int blocks) {
    const Call call = call_of(table, device, stream, blocks);
    const py::gil_scoped_release release;  // a full queue makes a launch wait
    launch_sums(call.launch, call.table, {pointer<const double>(scaled_eps), nullptr}, call.any_wide,
                call.any_narrow, pointer<Sums>(partials), pointer<const double>(scales),
                pointer<double>(sums), pointer<unsigned long long>(histograms));
}

void forces(const py::tuple& table, int64_t sets, int64_t partials, int64_t ledger, int64_t histograms,
            int device, int64_t stream, int blocks) {
    const Call call = call_of(table, device, stream, blocks);
    const py::gil_scoped_release release;  // a full queue makes a launch wait
    launch_forces(call.launch, call.table, pointer<const Hyperparameters>(sets), call.any_wide,
                  call.any_narrow, pointer<Sums>(partials), pointer<LedgerRow>(ledger),
                  pointer<unsigned long long>(histograms));
}

void adamw(const py::tuple& table, int64_t grads, int64_t sets, int64_t grad_scale, int64_t found_inf,
           int64_t partials, int64_t ledger, int device, int64_t stream, int blocks) {
    const Call call = call_of(table, device, stream, blocks);
    const Step step{pointer<const int64_t>(grads), pointer<const Hyperparameters>(sets),
                    pointer<const float>(grad_scale), pointer<const float>(found_inf)};
    const py::gil_scoped_release release;
    launch_adamw(call.launch, call.table, step, call.any_wide, call.any_narrow, pointer<StepSums>(partials),
                 pointer<LedgerRow>(ledger));
}

}  // namespace
}  // namespace cuda
}  // namespace weibull

PYBIND11_MODULE(_cuda, module) {
    using namespace py::literals;
    namespace cuda = weibull::cuda;
    module.doc() = "The kernels of weibull_kernels for NVIDIA GPUs.";
    module.attr("ARCHITECTURES") = cuda::architectures();
    module.attr("RUNTIME_VERSION") = cuda::runtime_version();
    module.attr("BINS") = weibull::kBins;
    module.attr("CHUNK") = cuda::kChunk;
    module.attr("ROW_COLUMNS") = sizeof(cuda::Row) / sizeof(int64_t);
    module.attr("HYPERPARAMETERS") = sizeof(weibull::Hyperparameters) / sizeof(double);
    module.attr("LEDGER_COLUMNS") = sizeof(weibull::LedgerRow) / sizeof(double);
    module.attr("SUM_COLUMNS") = cuda::kSumColumns;
    module.attr("SUMS_BYTES") = cuda::kWarps * sizeof(weibull::Sums);
    module.attr("STEP_SUMS_BYTES") = cuda::kWarps * sizeof(weibull::StepSums);
    module.def("driver_version", &cuda::driver_version,
               "The version of CUDA that the driver is for, as 13000 for 13.0; 0 where there is none.");
    module.def("sums", &cuda::sums, "table"_a, "scaled_eps"_a, "scales"_a, "partials"_a, "sums"_a,
               "histograms"_a, "device"_a, "stream"_a, "blocks"_a,
               "Sums float64 [P, 8] over tensors and their moments, the updates' times `scales` [P].");
    module.def("forces", &cuda::forces, "table"_a, "sets"_a, "partials"_a, "ledger"_a, "histograms"_a,
               "device"_a, "stream"_a, "blocks"_a,
               "The forces of the step that tensors have just made, as ledger rows float64 [P, 14].");
    module.def("adamw", &cuda::adamw, "table"_a, "grads"_a, "sets"_a, "grad_scale"_a, "found_inf"_a,
               "partials"_a, "ledger"_a, "device"_a, "stream"_a, "blocks"_a,
               "One step of AdamW in place, booked in the ledger at an address or, at 0, nowhere.");
}
