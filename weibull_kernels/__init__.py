"""Why the weights of a network grow, overshoot and relax under AdamW."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from .adamw import AdamW
from .budget import ForceBudget, Shares
from .dispatch import Backend, Backends, backends
from .ledger import Ledger
from .measure import forces
from .phases import PHASES, find_phases
from .records import ParquetSink, read_records
from .report import budget_table, phase_table
from .roles import ROLES, TRANSMISSION, role_of
from .statistics import WeightStatistics

try:
    __version__ = _version("weibull-kernels")
except _PackageNotFoundError:  # run from a checkout, without installing it
    __version__ = "0+checkout"

__all__ = [
    "PHASES",
    "ROLES",
    "TRANSMISSION",
    "AdamW",
    "Backend",
    "Backends",
    "ForceBudget",
    "Ledger",
    "ParquetSink",
    "Shares",
    "WeightStatistics",
    "backends",
    "budget_table",
    "find_phases",
    "forces",
    "phase_table",
    "read_records",
    "role_of",
]
