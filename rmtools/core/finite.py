"""Exact finite models: where the truth is known, and on which everything else is tested.

One name for what is spread over four files: the model and its particles (`layered`), the answers (`exact`,
`influence`) and the families (`families`).

>>> import numpy as np
>>> from rmtools.core import smc
>>> from rmtools.core.finite import random_tree
>>> from rmtools.core.tilt import Tilt
>>> model = random_tree(horizon=4, branching=3, eps=0.2, tilt=Tilt(0.1), rng=np.random.default_rng(1))
>>> exact = model.exact()
>>> rng = np.random.default_rng(2)
>>> runs = smc(model.particles(4000), 64, resampling="multinomial", ess_threshold=1, rng=rng)
>>> measured = 64 * np.var(np.exp(runs.log_z - exact.log_z))
>>> round(exact.bellman_error, 9), bool(0.9 < measured / exact.sigma2 < 1.1)
(0.2, True)
"""

from rmtools.core.exact import ExactResult
from rmtools.core.families import hidden_prefix, implicit, needle, persistent, perturb, product, random_tree
from rmtools.core.influence import InfluenceMad
from rmtools.core.layered import FiniteModel, FiniteParticles

__all__ = [
    "ExactResult",
    "FiniteModel",
    "FiniteParticles",
    "InfluenceMad",
    "hidden_prefix",
    "implicit",
    "needle",
    "persistent",
    "perturb",
    "product",
    "random_tree",
]
