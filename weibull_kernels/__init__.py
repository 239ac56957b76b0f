"""Why the weights of a network grow, overshoot and relax under AdamW."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from .adamw import AdamW
from .budget import ForceBudget, Shares
from .dispatch import Backend, Backends, backends
from .ledger import Ledger
from .measure import forces
from .phases import PHASES, RunSummary, find_phases, summarize_run
from .reconstruction import BRIDGES, ReconstructionErrors, integrate_forces, reconstruction_error
from .records import ParquetSink, read_records
from .report import budget_table, phase_table
from .roles import ROLES, TRANSMISSION, role_of
from .statistics import WeightStatistics, weight_statistics
from .super_weights import without_super_weights
from .weibull import WeibullFit, fit_weibull

try:
    __version__ = _version("weibull-kernels")
except _PackageNotFoundError:  # run from a checkout, without installing it
    __version__ = "0+checkout"

__all__ = [
    "BRIDGES",
    "PHASES",
    "ROLES",
    "TRANSMISSION",
    "AdamW",
    "Backend",
    "Backends",
    "ForceBudget",
    "Ledger",
    "ParquetSink",
    "ReconstructionErrors",
    "RunSummary",
    "Shares",
    "WeibullFit",
    "WeightStatistics",
    "backends",
    "budget_table",
    "find_phases",
    "fit_weibull",
    "forces",
    "integrate_forces",
    "phase_table",
    "read_records",
    "reconstruction_error",
    "role_of",
    "summarize_run",
    "weight_statistics",
    "without_super_weights",
]
