// What of a tensor matters to a kernel that is given its address, read from the Python object.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "dlpack.h"

namespace weibull {

namespace py = pybind11;

// How torch tells C of its tensors; kept from the import on. A tensor whose type is not one of these two
// exactly may be anything inside.
struct Torch {
    const DLExchange* exchange = nullptr;
    PyTypeObject* tensor = nullptr;
    PyTypeObject* parameter = nullptr;

    bool is_plain(PyObject* object) const {
        return Py_TYPE(object) == tensor || Py_TYPE(object) == parameter;
    }

    // Fills `out` from a plain tensor; false where torch cannot describe it (sparse, meta, quantised).
    bool read(PyObject* object, DLTensor& out) const {
        if (exchange->tensor_from_object(object, &out) == 0) return true;
        PyErr_Clear();
        return false;
    }
};

Torch& torch_here();

// Facts are a row of numbers and, of what only Python can describe, objects. Of a plain tensor: address,
// dtype, device, shape and strides.
struct Recorded {
    std::vector<int64_t> numbers;
    std::vector<py::object> objects;

    bool number(int64_t value) {
        numbers.push_back(value);
        return true;
    }
    bool object(py::object value) {
        objects.push_back(std::move(value));
        return true;
    }
};

// The same walk beside what was recorded; false at the first difference.
struct Compared {
    const Recorded& before;
    size_t next_number = 0, next_object = 0;

    bool number(int64_t value) {
        return next_number < before.numbers.size() && before.numbers[next_number++] == value;
    }
    bool object(const py::object& value) {
        if (next_object >= before.objects.size()) return false;
        const py::object& known = before.objects[next_object++];
        return known.ptr() == value.ptr() || known.equal(value);
    }
    bool at_the_end() const {
        return next_number == before.numbers.size() && next_object == before.objects.size();
    }
};

class Facts {
public:
    // `describe` says in Python what cannot be told here; `sharded` is the class of DTensors, or None.
    Facts(const py::list& columns, py::object describe, const py::object& sharded, bool addresses);

    bool hold_for(const py::list& columns, const py::object& sharded) const;

private:
    template <class Sink>
    bool walk(const py::list& columns, PyObject* sharded, Sink& sink) const;
    template <class Sink>
    bool tensor(PyObject* object, PyObject* sharded, Sink& sink) const;

    py::object describe_;
    bool addresses_;
    Recorded recorded_;
};

}  // namespace weibull
