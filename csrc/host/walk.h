// The parameters of an optimizer and what its state holds of them, in the order of its param groups.
#pragma once

#include <pybind11/pybind11.h>

namespace weibull {

namespace py = pybind11;

struct Walked {
    py::list sizes;       // parameters of each group
    py::list parameters;  // each once
    py::list gradients;   // of each of them; None where it has none
    py::list states;      // a list for each of the names, None where a state does not have it
};

// Tensors are told apart by identity and never hashed: `hash(tensor)` runs Python.
Walked walk(const py::list& param_groups, const py::dict& state, const py::tuple& names, bool gradients);

}  // namespace weibull
