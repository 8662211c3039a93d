"""Exact core: the sampler, finite models on which the truth is known, and the theory. numpy and scipy only.

>>> import numpy as np
>>> from rmtools.core import persistent, smc
>>> model = persistent(horizon=16, eps=0.05)
>>> result = smc(model.particles(groups=500), n_particles=32, rng=np.random.default_rng(0))
>>> bool(abs(np.exp(result.log_z).mean() - 1) < 0.05)
True
"""

from rmtools.core.conditional import GibbsResult, LogZBounds, log_z_bounds, particle_gibbs
from rmtools.core.finite import (
    ExactResult,
    FiniteModel,
    FiniteParticles,
    InfluenceMad,
    hidden_prefix,
    implicit,
    needle,
    persistent,
    perturb,
    product,
    random_tree,
)
from rmtools.core.metropolis import MetropolisResult, metropolis
from rmtools.core.particles import Particles, SMCResult
from rmtools.core.resampling import RESAMPLING
from rmtools.core.smc import smc
from rmtools.core.tilt import Tilt

__all__ = [
    "RESAMPLING",
    "ExactResult",
    "FiniteModel",
    "FiniteParticles",
    "GibbsResult",
    "InfluenceMad",
    "LogZBounds",
    "MetropolisResult",
    "Particles",
    "SMCResult",
    "Tilt",
    "hidden_prefix",
    "implicit",
    "log_z_bounds",
    "metropolis",
    "needle",
    "particle_gibbs",
    "persistent",
    "perturb",
    "product",
    "random_tree",
    "smc",
]
