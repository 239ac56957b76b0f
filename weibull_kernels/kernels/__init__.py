"""The kernels, one module a backend. They see tensors and columns of numbers, never an optimizer."""
