#include "facts.h"

namespace weibull {
namespace {

enum Kind : int64_t { kNothing, kPlain, kNumber, kSharded, kDescribed };

py::object attribute(PyObject* object, PyObject* name) {
    PyObject* found = PyObject_GetAttr(object, name);
    if (!found) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }

}  // namespace

Torch& torch_here() {
    static Torch torch;
    return torch;
}

Facts::Facts(const py::list& columns, py::object describe, const py::object& sharded, bool addresses)
    : describe_(std::move(describe)), addresses_(addresses) {
    walk(columns, sharded.ptr(), recorded_);
}

bool Facts::hold_for(const py::list& columns, const py::object& sharded) const {
    Compared compared{recorded_};
    return walk(columns, sharded.ptr(), compared) && compared.at_the_end();
}

template <class Sink>
bool Facts::walk(const py::list& columns, PyObject* sharded, Sink& sink) const {
    for (const py::handle column : columns) {
        if (!PyList_Check(column.ptr())) throw py::type_error("columns must be lists of tensors");
        // Its length is asked each time: describing a tensor runs Python, which may do anything.
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(column.ptr()); ++i) {
            const auto held = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(column.ptr(), i));
            if (!tensor(held.ptr(), sharded, sink)) return false;
        }
    }
    return true;
}

template <class Sink>
bool Facts::tensor(PyObject* object, PyObject* sharded, Sink& sink) const {
    if (object == Py_None) return sink.number(kNothing);
    if (PyFloat_CheckExact(object) || PyLong_CheckExact(object)) return sink.number(kNumber);
    DLTensor read;
    if (torch_here().is_plain(object) && torch_here().read(object, read)) {
        const int64_t dtype = read.dtype.code | int64_t(read.dtype.bits) << 8;
        const int64_t device = read.device.type | int64_t(read.device.index) << 32;
        if (!sink.number(kPlain) || !sink.number(dtype) || !sink.number(device) || !sink.number(read.ndim))
            return false;
        if (addresses_ && !sink.number(reinterpret_cast<int64_t>(read.data))) return false;
        for (int32_t d = 0; d < read.ndim; ++d)
            if (!sink.number(read.shape[d]) || (addresses_ && !sink.number(read.strides[d]))) return false;
        return true;
    }
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) == sharded) {
        static PyObject *const spec = name("_spec"), *const mesh = name("mesh"),
                               *const placements = name("placements"), *const local = name("_local_tensor");
        const py::object placed = attribute(object, spec);
        return sink.number(kSharded) && sink.object(attribute(placed.ptr(), mesh)) &&
               sink.object(attribute(placed.ptr(), placements)) &&
               tensor(attribute(object, local).ptr(), sharded, sink);
    }
    return sink.number(kDescribed) && sink.object(describe_(py::handle(object), addresses_));
}

}  // namespace weibull
