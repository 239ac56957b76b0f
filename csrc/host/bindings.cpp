// What Python code needs quickly of many tensors. The extension knows torch by what it says of itself to
// any C program (DLPack) and is not linked against it, so one build serves every version that speaks that.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "facts.h"
#include "walk.h"

namespace py = pybind11;

namespace weibull {
namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style>;
using FloatArray = py::array_t<float, py::array::c_style>;

// Numbers of dtypes as in csrc/columns.h; −1 of any other.
int64_t dtype_of(const DLDataType& type) {
    constexpr uint8_t bfloat = 4;
    if (type.lanes != 1) return -1;
    if (type.code == kDLFloat) return type.bits == 32 ? 0 : type.bits == 64 ? 1 : type.bits == 16 ? 3 : -1;
    return type.code == bfloat && type.bits == 16 ? 2 : -1;
}

bool is_contiguous(const DLTensor& tensor) {
    int64_t expected = 1;
    for (int32_t d = tensor.ndim; d-- > 0;) {
        if (tensor.shape[d] == 0) return true;
        if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
        expected *= tensor.shape[d];
    }
    return true;
}

// Addresses and dtypes into two columns of a table; whether all are plain, of known dtype and contiguous.
bool write_addresses(const py::list& tensors, Int64Array& table, int64_t address, int64_t dtype) {
    if (table.ndim() != 2 || table.shape(0) < py::ssize_t(tensors.size()) || address < 0 || dtype < 0 ||
        address >= table.shape(1) || dtype >= table.shape(1))
        throw std::invalid_argument("the table must have a row for each tensor, and both columns");
    auto cell = table.mutable_unchecked<2>();
    for (size_t i = 0; i < tensors.size(); ++i) {
        PyObject* const tensor = PyList_GET_ITEM(tensors.ptr(), i);
        DLTensor read;
        if (!torch_here().is_plain(tensor) || !torch_here().read(tensor, read) || !is_contiguous(read))
            return false;
        const int64_t known = dtype_of(read.dtype);
        if (known < 0) return false;
        cell(i, address) = reinterpret_cast<int64_t>(read.data) + int64_t(read.byte_offset);
        cell(i, dtype) = known;
    }
    return true;
}

// Numbers and one-entry tensors on the CPU as float32; places of those that are neither.
py::list read_numbers(const py::list& values, FloatArray& into) {
    if (into.ndim() != 1 || into.shape(0) < py::ssize_t(values.size()))
        throw std::invalid_argument("there must be a place for each number");
    float* const to = into.mutable_data();
    py::list unread;
    for (size_t i = 0; i < values.size(); ++i) {
        PyObject* const value = PyList_GET_ITEM(values.ptr(), i);
        DLTensor read;
        if (value == Py_None) {
            to[i] = 0;
        } else if (PyFloat_CheckExact(value) || PyLong_CheckExact(value)) {
            const double number = PyFloat_AsDouble(value);
            if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
            to[i] = float(number);
        } else if (torch_here().is_plain(value) && torch_here().read(value, read) && read.data &&
                   read.device.type == kDLCPU && dtype_of(read.dtype) >= 0 && dtype_of(read.dtype) < 2) {
            const void* const data = static_cast<const char*>(read.data) + read.byte_offset;
            to[i] = read.dtype.bits == 32 ? *static_cast<const float*>(data)
                                          : float(*static_cast<const double*>(data));
        } else {
            unread.append(i);
        }
    }
    return unread;
}

py::tuple walk_optimizer(const py::list& param_groups, const py::dict& state, const py::tuple& names,
                         bool gradients) {
    Walked found = walk(param_groups, state, names, gradients);
    return py::make_tuple(found.sizes, found.parameters, found.gradients, found.states);
}

// What torch offers, if it speaks a version that is known here.
const DLExchange* exchange_of(const py::object& tensor) {
    const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
    if (capsule.is_none()) throw py::import_error("this torch does not offer the DLPack exchange API");
    if (!PyCapsule_IsValid(capsule.ptr(), kDLCapsule))
        throw py::import_error("torch's DLPack exchange API is of another kind than 'dlpack_exchange_api'");
    const auto* header =
        static_cast<const DLExchangeHeader*>(PyCapsule_GetPointer(capsule.ptr(), kDLCapsule));
    const DLVersion newest = header->version;
    while (header && header->version.major > kDLMajor) header = header->previous;
    // What a minor version adds comes at the end.
    if (!header || header->version.major != kDLMajor || header->version.minor < kDLMinor)
        throw py::import_error("torch's DLPack exchange API has version " + std::to_string(newest.major) +
                               "." + std::to_string(newest.minor) + "; expected 1.3 or a later 1.x");
    const auto* exchange = reinterpret_cast<const DLExchange*>(header);
    if (!exchange->tensor_from_object)
        throw py::import_error("torch's DLPack exchange API does not read tensors without owning them");
    return exchange;
}

}  // namespace
}  // namespace weibull

PYBIND11_MODULE(_tensors, module) {
    using namespace py::literals;
    module.doc() = "Facts of many torch tensors at once, for weibull_kernels.";
    weibull::Torch& torch = weibull::torch_here();
    const py::object library = py::module_::import("torch");
    const py::object tensor = library.attr("Tensor"), parameter = library.attr("nn").attr("Parameter");
    torch.exchange = weibull::exchange_of(tensor);
    torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
    torch.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());

    py::class_<weibull::Facts>(module, "Facts")
        .def(py::init<const py::list&, py::object, const py::object&, bool>(), "columns"_a, "describe"_a,
             "sharded"_a, "addresses"_a)
        .def("hold_for", &weibull::Facts::hold_for, "columns"_a, "sharded"_a,
             "Whether the tensors in these lists are all that the first ones were.");
    module.def("walk", &weibull::walk_optimizer, "param_groups"_a, "state"_a, "names"_a, "gradients"_a,
               "Sizes of the groups, and lists of the parameters, each once, of their gradients and of what "
               "their states hold under each of the names.");
    module.def("write_addresses", &weibull::write_addresses, "tensors"_a, "table"_a.noconvert(), "address"_a,
               "dtype"_a,
               "Addresses and dtypes of tensors into two columns of a table; False, with the table in any "
               "state, unless all are plain and contiguous.");
    module.def(
        "read_numbers", &weibull::read_numbers, "values"_a, "into"_a.noconvert(),
        "Numbers, None (0) and tensors on the CPU as float32; returns the places of what is not read.");
}
