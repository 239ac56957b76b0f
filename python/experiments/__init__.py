"""The experiments of the papers.

Each module is one: `jobs` names its training runs, `findings` turns what they did into numbers, and `draw`,
`claims` and `section` show those numbers; nothing but the numbers is kept.
"""

from . import four_seeds, reconstruction, recovery

EXPERIMENTS = (four_seeds, reconstruction, recovery)
