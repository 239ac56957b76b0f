"""The experiments of the papers.

There is a module for each of `EXPERIMENTS`: `jobs` names its training runs (recovery has its own), `findings`
turns what they did into numbers, and `draw`, `claims` and `section` show those numbers; nothing but the
numbers is kept. Modules whose name begins with that of an experiment are parts of it; the others serve
several.
"""

from . import beyond, coherence, four_seeds, lr_sweep, reconstruction, recovery, relaxation

EXPERIMENTS = (four_seeds, relaxation, lr_sweep, reconstruction, recovery, coherence, beyond)
