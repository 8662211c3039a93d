"""The claim on language models: particles needed as the horizon grows, by reward models of several qualities.

>>> [p.name for p in (QUICK, FULL)], FULL.horizons
(['quick', 'full'], (2, 4, 8, 16, 32))
"""

from rmtools.verify.scaling.profile import FULL, QUICK
from rmtools.verify.scaling.run import Machine, run_scaling

__all__ = ["FULL", "QUICK", "Machine", "run_scaling"]
