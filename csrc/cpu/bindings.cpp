// What Python sees of the compiled kernels. Tensors come as addresses and sizes: the extension
// knows nothing of torch, so one build serves every version of it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "adamw.h"
#include "forces.h"
#include "gram.h"
#include "histogram.h"
#include "instruction_sets.h"
#include "normal_product.h"
#include "sums.h"

namespace py = pybind11;

namespace weibull {
namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style>;
using DoubleArray = py::array_t<double, py::array::c_style>;

// The columns of the tables, in weibull_kernels/kernels/cpu.py too.
enum TensorColumn {
    kWeight,
    kExpAvg,
    kExpAvgSq,
    kNumel,
    kWeightDtype,
    kExpAvgDtype,
    kExpAvgSqDtype,
    kTensorColumns
};
enum ScaleColumn { kScaledEps, kUpdateScale, kScaleColumns };
constexpr int kSumColumns = 6, kCountColumns = 2;

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

py::tuple sums(const Int64Array& tensors, const DoubleArray& scales, std::optional<Int64Array> histograms,
               const std::string& instruction_set, int threads) {
    require(tensors.ndim() == 2 && tensors.shape(1) == kTensorColumns, "tensors must be [P, 7]");
    const int64_t count = tensors.shape(0);
    require(scales.ndim() == 2 && scales.shape(0) == count && scales.shape(1) == kScaleColumns,
            "scales must be [P, 2]");
    require(!histograms ||
                (histograms->ndim() == 2 && histograms->shape(0) == count && histograms->shape(1) == kBins),
            "histograms must be [P, BINS]");
    const InstructionSet set = find_instruction_set(instruction_set);

    std::vector<Tensor> rows(count);
    const auto cell = tensors.unchecked<2>();
    const auto scale = scales.unchecked<2>();
    for (int64_t i = 0; i < count; ++i) {
        rows[i] = {{pointer<void>(cell(i, kWeight)), Dtype(cell(i, kWeightDtype))},
                   {pointer<void>(cell(i, kExpAvg)), Dtype(cell(i, kExpAvgDtype))},
                   {pointer<void>(cell(i, kExpAvgSq)), Dtype(cell(i, kExpAvgSqDtype))},
                   cell(i, kNumel),
                   scale(i, kScaledEps),
                   scale(i, kUpdateScale)};
    }
    int64_t* bins = histograms ? histograms->mutable_data() : nullptr;
    std::vector<Sums> totals;
    {
        py::gil_scoped_release release;
        totals = sum_tensors(rows, bins, set, threads);
    }

    DoubleArray values({count, int64_t(kSumColumns)});
    Int64Array counts({count, int64_t(kCountColumns)});
    auto value = values.mutable_unchecked<2>();
    auto number = counts.mutable_unchecked<2>();
    for (int64_t i = 0; i < count; ++i) {
        const Sums& s = totals[i];
        const double row[kSumColumns] = {s.weight_update, s.update_sq,  s.weight_sq,
                                         s.log_sum,       s.log_sq_sum, s.max_abs};
        for (int k = 0; k < kSumColumns; ++k) value(i, k) = row[k];
        number(i, 0) = s.zero_count;
        number(i, 1) = s.non_finite_count;
    }
    return py::make_tuple(values, counts);
}

enum SteppedColumn {
    kStepWeight,
    kStepExpAvg,
    kStepExpAvgSq,
    kStepMaxExpAvgSq,
    kStepWeightDtype,
    kStepExpAvgDtype,
    kStepExpAvgSqDtype,
    kStepMaxExpAvgSqDtype,
    kStepNumel,
    kStepCount,
    kStepGroup,
    kStepPlace,
    kStepGrad,
    kStepGradDtype,
    kSteppedColumns
};
constexpr int kHyperparameters = 7, kLedgerColumns = sizeof(LedgerRow) / sizeof(double);

void adamw(const Int64Array& tensors, const DoubleArray& hyperparameters, std::optional<DoubleArray> ledger,
           int64_t grad_scale, int64_t found_inf, const std::string& instruction_set, int threads) {
    require(tensors.ndim() == 2 && tensors.shape(1) == kSteppedColumns, "tensors must be [P, 14]");
    require(hyperparameters.ndim() == 2 && hyperparameters.shape(1) == kHyperparameters,
            "hyperparameters must be [G, 7]");
    require(!ledger || (ledger->ndim() == 2 && ledger->shape(1) == kLedgerColumns), "ledger must be [L, 14]");
    const InstructionSet set = find_instruction_set(instruction_set);
    LedgerRow* const booked = ledger ? reinterpret_cast<LedgerRow*>(ledger->mutable_data()) : nullptr;

    std::vector<Stepped> rows(tensors.shape(0));
    const auto cell = tensors.unchecked<2>();
    const auto number = hyperparameters.unchecked<2>();
    for (size_t i = 0; i < rows.size(); ++i) {
        const auto column = [&](SteppedColumn address, SteppedColumn dtype) {
            return Column{pointer<void>(cell(i, address)), Dtype(cell(i, dtype))};
        };
        const int64_t group = cell(i, kStepGroup), place = cell(i, kStepPlace);
        require(0 <= group && group < hyperparameters.shape(0), "no such row of hyperparameters");
        for (const SteppedColumn column : {kStepWeight, kStepGrad, kStepExpAvg, kStepExpAvgSq})
            require(cell(i, column) != 0 || cell(i, kStepNumel) == 0,
                    "a weight, gradient or moment has no memory; was its storage freed?");
        require(cell(i, kStepCount) != 0, "a count of steps has no memory");
        require(!ledger || (0 <= place && place < ledger->shape(0)), "no such row of the ledger");
        rows[i] = {column(kStepWeight, kStepWeightDtype),
                   column(kStepGrad, kStepGradDtype),
                   column(kStepExpAvg, kStepExpAvgDtype),
                   column(kStepExpAvgSq, kStepExpAvgSqDtype),
                   column(kStepMaxExpAvgSq, kStepMaxExpAvgSqDtype),
                   cell(i, kStepNumel),
                   pointer<float>(cell(i, kStepCount)),
                   booked ? booked + place : nullptr,
                   {number(group, 0), number(group, 1), number(group, 2), number(group, 3), number(group, 4),
                    number(group, 5), number(group, 6)}};
    }
    py::gil_scoped_release release;
    step_tensors(rows, pointer<const float>(grad_scale), pointer<const float>(found_inf), set, threads);
}

// The rows of a step that has just been made, from the same table: gradients and places are not looked at.
DoubleArray forces(const Int64Array& tensors, const DoubleArray& hyperparameters,
                   std::optional<Int64Array> histograms, const std::string& instruction_set, int threads) {
    require(tensors.ndim() == 2 && tensors.shape(1) == kSteppedColumns, "tensors must be [P, 14]");
    const int64_t count = tensors.shape(0);
    require(hyperparameters.ndim() == 2 && hyperparameters.shape(1) == kHyperparameters,
            "hyperparameters must be [G, 7]");
    require(!histograms ||
                (histograms->ndim() == 2 && histograms->shape(0) == count && histograms->shape(1) == kBins),
            "histograms must be [P, BINS]");
    const InstructionSet set = find_instruction_set(instruction_set);

    std::vector<Measured> read(count);
    const auto cell = tensors.unchecked<2>();
    const auto number = hyperparameters.unchecked<2>();
    for (int64_t i = 0; i < count; ++i) {
        const auto column = [&](SteppedColumn address, SteppedColumn dtype) {
            return Column{pointer<void>(cell(i, address)), Dtype(cell(i, dtype))};
        };
        const int64_t group = cell(i, kStepGroup);
        require(0 <= group && group < hyperparameters.shape(0), "no such row of hyperparameters");
        require(cell(i, kStepWeight) != 0 || cell(i, kStepNumel) == 0,
                "a weight has no memory; was its storage freed?");
        require(cell(i, kStepCount) != 0, "a count of steps has no memory");
        require((cell(i, kStepExpAvg) == 0) == (cell(i, kStepExpAvgSq) == 0),
                "a moment has no memory; was its storage freed?");
        const bool amsgrad = cell(i, kStepMaxExpAvgSq) != 0;
        read[i] = {column(kStepWeight, kStepWeightDtype),
                   column(kStepExpAvg, kStepExpAvgDtype),
                   amsgrad ? column(kStepMaxExpAvgSq, kStepMaxExpAvgSqDtype)
                           : column(kStepExpAvgSq, kStepExpAvgSqDtype),
                   cell(i, kStepNumel),
                   double(*pointer<const float>(cell(i, kStepCount))),
                   {number(group, 0), number(group, 1), number(group, 2), number(group, 3), number(group, 4),
                    number(group, 5), number(group, 6)}};
    }
    int64_t* bins = histograms ? histograms->mutable_data() : nullptr;
    std::vector<LedgerRow> rows;
    {
        py::gil_scoped_release release;
        rows = forces_of(read, bins, set, threads);
    }
    DoubleArray found({count, int64_t(kLedgerColumns)});
    if (count) std::memcpy(found.mutable_data(), rows.data(), rows.size() * sizeof(LedgerRow));
    return found;
}

enum StateColumn { kStateAddress, kStateDtype, kStateColumns };
constexpr int kMoveColumns = 2;

// A tensor's successive states, from their table.
std::vector<Column> states(const Int64Array& columns, int64_t count) {
    require(columns.ndim() == 2 && columns.shape(0) > 0 && columns.shape(1) == kStateColumns,
            "columns must be [K, 2] with K of at least 1");
    require(count >= 0, "a count of entries is not negative");
    std::vector<Column> found(columns.shape(0));
    const auto cell = columns.unchecked<2>();
    for (size_t i = 0; i < found.size(); ++i) {
        require(cell(i, kStateAddress) != 0 || count == 0, "a column has no memory; was its storage freed?");
        found[i] = {pointer<void>(cell(i, kStateAddress)), Dtype(cell(i, kStateDtype))};
    }
    return found;
}

DoubleArray gram(const Int64Array& columns, int64_t count, const std::string& instruction_set) {
    const std::vector<Column> found = states(columns, count);
    const InstructionSet set = find_instruction_set(instruction_set);
    DoubleArray matrix({columns.shape(0), columns.shape(0)});
    double* const to = matrix.mutable_data();
    {
        py::gil_scoped_release release;
        gram_matrix(found, count, set, to);
    }
    return matrix;
}

DoubleArray moves(const Int64Array& columns, int64_t count, const std::string& instruction_set) {
    const std::vector<Column> found = states(columns, count);
    const InstructionSet set = find_instruction_set(instruction_set);
    DoubleArray table({columns.shape(0), py::ssize_t(kMoveColumns)});
    double* const to = table.mutable_data();
    {
        py::gil_scoped_release release;
        column_moves(found, count, set, to);
    }
    return table;
}

enum MatrixColumn {
    kMatrixAddress,
    kMatrixDtype,
    kPieces,
    kPieceRows,
    kEntriesPerRow,
    kPieceStride,
    kRowStride,
    kVectorsAddress,
    kMatrixColumns
};

// The products lie one after the other, [b, n] each.
DoubleArray normal_product(const Int64Array& matrices, int64_t b, const std::string& instruction_set,
                           int threads) {
    require(matrices.ndim() == 2 && matrices.shape(1) == kMatrixColumns, "matrices must be [P, 8]");
    require(b > 0, "there must be at least one vector");
    const InstructionSet set = find_instruction_set(instruction_set);
    const auto cell = matrices.unchecked<2>();
    std::vector<NormalProduct> products(matrices.shape(0));
    int64_t size = 0;
    for (size_t i = 0; i < products.size(); ++i) {
        for (const MatrixColumn column : {kPieces, kPieceRows, kEntriesPerRow})
            require(cell(i, column) > 0, "a matrix has rows and columns");
        require(cell(i, kMatrixAddress) != 0 && cell(i, kVectorsAddress) != 0,
                "a matrix or its vectors have no memory; was a storage freed?");
        products[i] = {{{pointer<void>(cell(i, kMatrixAddress)), Dtype(cell(i, kMatrixDtype))},
                        cell(i, kPieces),
                        cell(i, kPieceRows),
                        cell(i, kEntriesPerRow),
                        cell(i, kPieceStride),
                        cell(i, kRowStride)},
                       pointer<const double>(cell(i, kVectorsAddress)),
                       nullptr};
        size += b * cell(i, kEntriesPerRow);
    }
    DoubleArray found(size);
    double* to = found.mutable_data();
    for (NormalProduct& product : products) {
        product.product = to;
        to += b * product.matrix.columns;
    }
    {
        py::gil_scoped_release release;
        normal_products(products, b, set, threads);
    }
    return found;
}

std::vector<std::string> instruction_set_names() {
    std::vector<std::string> names;
    for (const InstructionSet& set : instruction_sets()) names.emplace_back(set.name);
    return names;
}

}  // namespace
}  // namespace weibull

PYBIND11_MODULE(_cpu, module) {
    using namespace py::literals;
    module.doc() = "The kernels of weibull_kernels for CPUs.";
    module.attr("BINS") = weibull::kBins;
    module.def("instruction_sets", &weibull::instruction_set_names,
               "Those this processor runs, the widest first.");
    module.def("sums", &weibull::sums, "tensors"_a, "scales"_a, "histograms"_a, "instruction_set"_a,
               "threads"_a,
               "One pass over tensors and their AdamW moments: float64 sums [P, 6] and int64 counts [P, 2].");
    module.def("adamw", &weibull::adamw, "tensors"_a, "hyperparameters"_a, "ledger"_a.noconvert(),
               "grad_scale"_a, "found_inf"_a, "instruction_set"_a, "threads"_a,
               "One step of AdamW on tensors [P, 14] by hyperparameters [G, 7], in place, booked in the "
               "ledger [L, 14] or None.");
    module.def("forces", &weibull::forces, "tensors"_a, "hyperparameters"_a, "histograms"_a,
               "instruction_set"_a, "threads"_a,
               "The rows float64 [P, 14] of a ledger of the step just made on tensors [P, 14].");
    module.def(
        "gram", &weibull::gram, "columns"_a, "count"_a, "instruction_set"_a,
        "The Gram matrix float64 [K, K] of the first of K columns and of the differences of neighbours, "
        "over their `count` entries, on the calling thread.");
    module.def(
        "moves", &weibull::moves, "columns"_a, "count"_a, "instruction_set"_a,
        "The squared norm of each of K columns and of its difference to the one before, float64 [K, 2], "
        "over their `count` entries, on the calling thread.");
    module.def(
        "normal_product", &weibull::normal_product, "matrices"_a, "b"_a, "instruction_set"_a, "threads"_a,
        "V·AᵀA of P matrices and b vectors each by a table [P, 8], float64 [b, n] one after the other.");
}
