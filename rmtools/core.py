"""The torch-free import: the sampler, finite models with known solutions, the theory, and the estimators of `stats/`.

It needs numpy and scipy only.

>>> import numpy as np
>>> from rmtools.core import persistent, smc
>>> model = persistent(horizon=16, eps=0.05)
>>> result = smc(model.particles(groups=500), n_particles=32, rng=np.random.default_rng(0))
>>> bool(abs(np.exp(result.log_z).mean() - 1) < 0.05)
True

The Bellman error of the value at every first step, from the exact ratios; intervals resample prompts (here prefixes):

>>> from rmtools.core import bellman_estimator, exact_errors, n_for_cv
>>> log_ratio = np.random.default_rng(1).normal(0, 0.1, 200)
>>> estimator = bellman_estimator(exact_errors(log_ratio), np.arange(200), np.zeros(200, int), horizon=16)
>>> summary = estimator.bootstrap(np.random.default_rng(2))
>>> summary.corrected.rms.contains(0.1), n_for_cv(sigma2=16 * 0.1**2, delta=0.05)
(True, 64.0)
"""

from rmtools.exact.families import hidden_prefix, implicit, needle, persistent, perturb, product, random_tree
from rmtools.exact.finite_model import FiniteModel, FiniteParticles
from rmtools.exact.influence import InfluenceMad
from rmtools.exact.schedule import LimitingSchedule
from rmtools.exact.solution import ExactResult, solve
from rmtools.particles.metropolis import MetropolisResult, metropolis
from rmtools.particles.particle_gibbs import GibbsResult, LogZBounds, log_z_bounds, particle_gibbs
from rmtools.particles.protocol import Particles, SMCResult, Step
from rmtools.particles.resampling import RESAMPLING
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt
from rmtools.stats.bellman_error import BellmanSummary, bellman_estimator
from rmtools.stats.binned_errors import FlatSummary, flat_estimator
from rmtools.stats.bootstrap import (
    Estimator,
    Interval,
    bootstrap,
    cluster_bootstrap,
    cluster_sums,
    first_mean,
    jackknife,
    ratio_of_means,
)
from rmtools.stats.calibration import (
    CalibrationSummary,
    auc,
    auc_interval,
    auc_within,
    brier,
    calibration_estimator,
    expected_calibration_error,
    reliability_curve,
)
from rmtools.stats.empirical_sigma2 import MeasuredSigma2, measured_sigma2
from rmtools.stats.influence import InfluenceSD, influence_estimator, influence_sd
from rmtools.stats.paired import ModelEstimates, PairedDifference, paired_estimator
from rmtools.stats.path_errors import (
    GaugeFixed,
    PathSummary,
    gauge_fixed_estimator,
    path_estimator,
    path_sums,
    ratio_bound_quantiles,
)
from rmtools.stats.prefix_errors import PrefixErrors, exact_errors, prefix_errors, self_normalise
from rmtools.stats.quantiles import fraction_bound, quantile_interval
from rmtools.stats.schedule import (
    EstimatedSchedule,
    ScheduleCost,
    estimate_schedule,
    schedule_estimator,
    schedule_parts,
)
from rmtools.stats.sigma2 import (
    Sigma2,
    Sigma2Parts,
    n_for_cv,
    n_for_tv,
    sigma2,
    sigma2_estimator,
    sigma2_parts,
    value_square_estimate,
)

__all__ = [
    "RESAMPLING",
    "BellmanSummary",
    "CalibrationSummary",
    "EstimatedSchedule",
    "Estimator",
    "ExactResult",
    "FiniteModel",
    "FiniteParticles",
    "FlatSummary",
    "GaugeFixed",
    "GibbsResult",
    "InfluenceMad",
    "InfluenceSD",
    "Interval",
    "LimitingSchedule",
    "LogZBounds",
    "MeasuredSigma2",
    "MetropolisResult",
    "ModelEstimates",
    "PairedDifference",
    "Particles",
    "PathSummary",
    "PrefixErrors",
    "SMCResult",
    "ScheduleCost",
    "Sigma2",
    "Sigma2Parts",
    "Step",
    "Tilt",
    "auc",
    "auc_interval",
    "auc_within",
    "bellman_estimator",
    "bootstrap",
    "brier",
    "calibration_estimator",
    "cluster_bootstrap",
    "cluster_sums",
    "estimate_schedule",
    "exact_errors",
    "expected_calibration_error",
    "first_mean",
    "flat_estimator",
    "fraction_bound",
    "gauge_fixed_estimator",
    "hidden_prefix",
    "implicit",
    "influence_estimator",
    "influence_sd",
    "jackknife",
    "log_z_bounds",
    "measured_sigma2",
    "metropolis",
    "n_for_cv",
    "n_for_tv",
    "needle",
    "paired_estimator",
    "particle_gibbs",
    "path_estimator",
    "path_sums",
    "persistent",
    "perturb",
    "prefix_errors",
    "product",
    "quantile_interval",
    "random_tree",
    "ratio_bound_quantiles",
    "ratio_of_means",
    "reliability_curve",
    "schedule_estimator",
    "schedule_parts",
    "self_normalise",
    "sigma2",
    "sigma2_estimator",
    "sigma2_parts",
    "smc",
    "solve",
    "value_square_estimate",
]
