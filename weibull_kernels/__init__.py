"""Why the weights of a network grow, overshoot and relax under AdamW."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from .budget import ForceBudget, Shares
from .dispatch import Backend, Backends, backends
from .measure import forces
from .roles import ROLES, TRANSMISSION, role_of
from .statistics import WeightStatistics

try:
    __version__ = _version("weibull-kernels")
except _PackageNotFoundError:  # run from a checkout, without installing it
    __version__ = "0+checkout"

__all__ = [
    "ROLES",
    "TRANSMISSION",
    "Backend",
    "Backends",
    "ForceBudget",
    "Shares",
    "WeightStatistics",
    "backends",
    "forces",
    "role_of",
]
