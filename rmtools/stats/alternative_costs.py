"""What one answer costs by other means than the sampler: rejection and best-of-N (docs/equations.md section 5).

>>> import numpy as np
>>> best_of_n(np.array([0.5]), np.array([0.5]), delta_tv=0.125)  # 1 - .5^3 = .875
array([3.])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.stats.bootstrap import Estimator, Interval, Statistic, ratio_of_means
from rmtools.stats.sigma2 import value_square_estimate


@dataclass(frozen=True)
class AlternativeCosts:
    """Cost of one answer within the requested total variation: sampler, rejection, best-of-N; tokens are generated ones.

    All are means over prompts with weights Z^2, as sigma^2 is pooled: prompts that are often solved count most, those
    without any right trajectory hardly, and their cost is unknown. Rejection accepts a solution with probability phi, after
    1 / Z solutions on average: exact draws from the target; None if a prompt has a single trajectory. Best-of-N needs a
    verifier to pick the right one: N is where one of N is right as often as a draw from the target, less the TV. It plugs in
    each prompt's share of right solutions, rough if there are few; None unless rewards are 0 or 1.

    At least one solution is drawn: intervals are cut at 1, which keeps their coverage. The studentised bootstrap is symmetric in
    the standard error, not in the range of a count: it reaches below 1 if few prompts carry most of the weight.
    """

    tokens_per_solution: float
    smc_tokens: Interval | None
    rejection_solutions: Interval | None
    rejection_tokens: Interval | None
    best_of_n_solutions: Interval | None
    best_of_n_tokens: Interval | None
    prompts_without_success: int


def alternative_costs(
    rewards: Sequence[np.ndarray],
    potentials: Sequence[np.ndarray],
    tokens: float,
    delta_tv: float,
) -> Estimator[AlternativeCosts]:
    """Estimate what rejection and best-of-N cost from rewards and potentials, P arrays (n,); the sampler's tokens are None."""
    success = np.asarray([r.mean() for r in rewards])
    z = np.asarray([phi.mean() for phi in potentials])
    sums: dict[str, tuple[np.ndarray, Statistic]] = {}
    if min(len(phi) for phi in potentials) > 1:
        weight = np.asarray([float(value_square_estimate(phi)) for phi in potentials])
        sums["rejection"] = (np.stack([z, weight], axis=1), ratio_of_means)
        if all(np.isin(r, (0.0, 1.0)).all() for r in rewards) and success.any():
            columns = np.stack([weight * best_of_n(success, z, delta_tv), weight], axis=1)[success > 0]
            sums["best"] = (columns, ratio_of_means)

    def result(found: Mapping[str, Interval]) -> AlternativeCosts:
        counts = {name: n.map(lambda x: max(x, 1.0)) for name, n in found.items()}
        rejection, best = counts.get("rejection"), counts.get("best")
        return AlternativeCosts(
            tokens_per_solution=tokens,
            smc_tokens=None,
            rejection_solutions=rejection,
            rejection_tokens=rejection and rejection.map(lambda n: n * tokens),
            best_of_n_solutions=best,
            best_of_n_tokens=best and best.map(lambda n: n * tokens),
            prompts_without_success=int((success == 0).sum()),
        )

    return Estimator(sums, result)


def best_of_n(success: np.ndarray, z: np.ndarray, delta_tv: float) -> np.ndarray:
    """Return N (P,) at which one of N is right as often as a draw from the target less ``delta_tv``; inf without success."""
    failing = np.minimum(1 - success / z + delta_tv, 1.0)  # a draw from the target fails with 1 - success / z
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.log(failing) / np.log1p(-success)
    return np.where(success == 0, np.inf, np.maximum(np.nan_to_num(n, nan=1.0), 1.0))
