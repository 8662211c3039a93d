"""What a value model costs in particles: predicted from rollouts, and measured by running the sampler.

One name for what is spread over three files: sigma^2 and the accuracy of the estimate of Z (`cv_cost`), the
total variation of the output (`tv_cost`), and what runs of the sampler show (`measured`). docs/equations.md
section 5.

>>> n_for_cv(2.0, delta=0.5), n_for_tv(2.0, delta=0.25)
(8.0, 4.0)
"""

from rmtools.core.cv_cost import (
    Sigma2,
    Sigma2Parts,
    n_for_cv,
    n_for_tv,
    pooled_sigma2,
    sigma2,
    sigma2_parts,
    value_square_estimate,
)
from rmtools.core.measured import MeasuredSigma2, measured_sigma2
from rmtools.core.tv_cost import InfluenceSD, influence_sd, pooled_influence_sd

__all__ = [
    "InfluenceSD",
    "MeasuredSigma2",
    "Sigma2",
    "Sigma2Parts",
    "influence_sd",
    "measured_sigma2",
    "n_for_cv",
    "n_for_tv",
    "pooled_influence_sd",
    "pooled_sigma2",
    "sigma2",
    "sigma2_parts",
    "value_square_estimate",
]
