"""The torch-free import: the sampler, finite models with known solutions, and the theory. numpy and scipy only.

>>> import numpy as np
>>> from rmtools.core import persistent, smc
>>> model = persistent(horizon=16, eps=0.05)
>>> result = smc(model.particles(groups=500), n_particles=32, rng=np.random.default_rng(0))
>>> bool(abs(np.exp(result.log_z).mean() - 1) < 0.05)
True
"""

from rmtools.exact.families import hidden_prefix, implicit, needle, persistent, perturb, product, random_tree
from rmtools.exact.finite_model import FiniteModel, FiniteParticles
from rmtools.exact.influence import InfluenceMad
from rmtools.exact.solution import ExactResult, solve
from rmtools.particles.metropolis import MetropolisResult, metropolis
from rmtools.particles.particle_gibbs import GibbsResult, LogZBounds, log_z_bounds, particle_gibbs
from rmtools.particles.protocol import Particles, SMCResult
from rmtools.particles.resampling import RESAMPLING
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt

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
    "solve",
]
