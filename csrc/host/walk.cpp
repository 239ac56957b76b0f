#include "walk.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace weibull {
namespace {

// From objects, by identity, to other objects or nothing: open addressing, no larger than half full.
class ByIdentity {
public:
    explicit ByIdentity(size_t count) {
        size_t size = 16;
        while (size < 2 * count) size *= 2;
        keys_.assign(size, nullptr);
        values_.assign(size, nullptr);
    }

    // The place of a key; it is free where the key has not been put there yet.
    size_t place_of(PyObject* key) const {
        const size_t mask = keys_.size() - 1;
        // Objects lie at multiples of 16; a multiplication spreads what is left.
        size_t at = (reinterpret_cast<uintptr_t>(key) >> 4) * 0x9e3779b97f4a7c15u >> 20 & mask;
        while (keys_[at] && keys_[at] != key) at = (at + 1) & mask;
        return at;
    }
    bool holds(size_t place) const { return keys_[place] != nullptr; }
    void put(size_t place, PyObject* key, PyObject* value) {
        keys_[place] = key;
        values_[place] = value;
    }
    PyObject* value(size_t place) const { return values_[place]; }

private:
    std::vector<PyObject*> keys_, values_;
};

py::list params_of(py::handle group) {
    static PyObject* const key = PyUnicode_InternFromString("params");
    if (!PyDict_Check(group.ptr())) throw py::type_error("a param group must be a dict");
    PyObject* found = PyDict_GetItemWithError(group.ptr(), key);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (!found || !PyList_Check(found)) throw py::type_error("the params of a group must be a list");
    return py::reinterpret_borrow<py::list>(found);
}

// What a state holds under the names, or nothing. Names are mostly the very strings; of those that are not,
// as in a state that was loaded, the hash is asked for.
void entries_of(PyObject* state, const py::tuple& names, PyObject** entries) {
    const Py_ssize_t count = PyTuple_GET_SIZE(names.ptr());
    std::fill(entries, entries + count, nullptr);
    if (!state) return;
    if (!PyDict_Check(state)) throw py::type_error("the state of a parameter must be a dict");
    Py_ssize_t met = 0;
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(state, &at, &key, &value);)
        for (Py_ssize_t i = 0; i < count; ++i)
            if (PyTuple_GET_ITEM(names.ptr(), i) == key) {
                entries[i] = value;
                ++met;
            }
    if (met == PyDict_GET_SIZE(state)) return;
    for (Py_ssize_t i = 0; i < count; ++i) {
        if (entries[i]) continue;
        entries[i] = PyDict_GetItemWithError(state, PyTuple_GET_ITEM(names.ptr(), i));
        if (!entries[i] && PyErr_Occurred()) throw py::error_already_set();
    }
}

void set(const py::list& column, size_t row, PyObject* value) {
    PyList_SET_ITEM(column.ptr(), row, Py_NewRef(value ? value : Py_None));
}

}  // namespace

Walked walk(const py::list& param_groups, const py::dict& state, const py::tuple& names, bool gradients) {
    static PyObject* const grad = PyUnicode_InternFromString("grad");
    ByIdentity states(state.size());
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(state.ptr(), &at, &key, &value);)
        states.put(states.place_of(key), key, value);

    Walked found;
    size_t count = 0;
    for (const py::handle group : param_groups) {
        found.sizes.append(params_of(group).size());
        count += params_of(group).size();
    }
    std::vector<PyObject*> parameters;
    parameters.reserve(count);
    ByIdentity seen(count);
    for (const py::handle group : param_groups)
        for (const py::handle parameter : params_of(group)) {
            const size_t place = seen.place_of(parameter.ptr());
            if (seen.holds(place)) continue;
            seen.put(place, parameter.ptr(), nullptr);
            parameters.push_back(parameter.ptr());
        }

    // Until the lists are filled nothing runs that could change what they are filled from.
    const size_t rows = parameters.size();
    found.parameters = py::list(rows);
    for (size_t i = 0; i < names.size(); ++i) found.states.append(py::list(rows));
    std::vector<PyObject*> entries(names.size());
    for (size_t row = 0; row < rows; ++row) {
        set(found.parameters, row, parameters[row]);
        entries_of(states.value(states.place_of(parameters[row])), names, entries.data());
        for (size_t i = 0; i < names.size(); ++i)
            set(py::reinterpret_borrow<py::list>(PyList_GET_ITEM(found.states.ptr(), i)), row, entries[i]);
    }
    for (size_t row = 0; gradients && row < rows; ++row) {
        PyObject* gradient = PyObject_GetAttr(PyList_GET_ITEM(found.parameters.ptr(), row), grad);
        if (!gradient) throw py::error_already_set();
        found.gradients.append(py::reinterpret_steal<py::object>(gradient));
    }
    return found;
}

}  // namespace weibull
