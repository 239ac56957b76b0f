"""The experiments of the papers.

Each module is one: `jobs` names its training runs, `findings` turns what they did into numbers, and `draw`,
`claims` and `section` show those numbers; nothing but the numbers is kept.
"""

from . import beyond, coherence, four_seeds, lr_sweep, reconstruction, recovery, relaxation

EXPERIMENTS = (four_seeds, relaxation, lr_sweep, reconstruction, recovery, coherence, beyond)
