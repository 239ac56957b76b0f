"""Why the weights of a network grow, overshoot and relax under AdamW."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from . import scaling
from .adamw import AdamW
from .budget import ForceBudget, Shares
from .dispatch import Backend, Backends, backends
from .flat_shards import forces_from
from .fused import Fused
from .gain import GainMeter, Gains, gain
from .gram import CheckpointGram
from .gram_pass import checkpoint_gram, extend_gram
from .ledger import Ledger
from .measure import forces
from .meter import Meter, attach
from .page import write_report
from .phases import PHASES, RunSummary, find_phases, summarize_run
from .reconstruction import BRIDGES, ReconstructionErrors, integrate_forces, reconstruction_error
from .records import read_records, read_run
from .recovery import recover, recover_from_norms
from .report import budget_table, phase_table
from .roles import ROLES, TRANSMISSION, role_of
from .series import ForceSeries, Impulses, Recovery
from .singular_values import TopSingularValues, top_singular_values
from .sinks import ConsoleSink, JsonLinesSink, ParquetSink
from .spectra import Spectra, shape_distance, spectrum
from .statistics import WeightStatistics, weight_statistics
from .super_weights import without_super_weights
from .trajectory import find_checkpoints
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
    "CheckpointGram",
    "ConsoleSink",
    "ForceBudget",
    "ForceSeries",
    "Fused",
    "GainMeter",
    "Gains",
    "Impulses",
    "JsonLinesSink",
    "Ledger",
    "Meter",
    "ParquetSink",
    "ReconstructionErrors",
    "Recovery",
    "RunSummary",
    "Shares",
    "Spectra",
    "TopSingularValues",
    "WeibullFit",
    "WeightStatistics",
    "attach",
    "backends",
    "budget_table",
    "checkpoint_gram",
    "extend_gram",
    "find_checkpoints",
    "find_phases",
    "fit_weibull",
    "forces",
    "forces_from",
    "gain",
    "integrate_forces",
    "phase_table",
    "read_records",
    "read_run",
    "reconstruction_error",
    "recover",
    "recover_from_norms",
    "role_of",
    "scaling",
    "shape_distance",
    "spectrum",
    "summarize_run",
    "top_singular_values",
    "weight_statistics",
    "without_super_weights",
    "write_report",
]
