"""Two value models on the same rollouts: differences of their figures, prompt by prompt.

Two models that see the same prefixes, children and outcomes share most of their noise. The difference of their
figures, resampled over prompts as one number, has an interval far narrower than the intervals of the two
figures suggest (docs/equations.md section 6).

>>> import numpy as np
>>> from rmtools.stats.prefix_errors import prefix_errors
>>> rng = np.random.default_rng(0)
>>> prompt, children = np.repeat(np.arange(100), 4), np.log(rng.gamma(4.0, 0.25, (400, 8)))
>>> a = prefix_errors(np.full(400, 0.1), children)  # V = exp(0.1), the ratio is 1 / V
>>> b = prefix_errors(np.zeros(400), children)
>>> difference = paired_estimator(ModelEstimates(a), ModelEstimates(b), prompt).bootstrap(rng)
>>> round(difference.signed_mean.estimate, 9), difference.signed_mean.half_width < 1e-9
(-0.1, True)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import Estimator, Interval, Statistic, ratio_of_means, weighted_mean
from rmtools.stats.calibration import brier
from rmtools.stats.prefix_errors import PrefixErrors
from rmtools.stats.sigma2 import Sigma2Parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class ModelEstimates:
    """What one model says on rollouts that another model is scored on as well.

    Attributes
    ----------
    errors : PrefixErrors
        At P prefixes, from `prefix_errors` or `exact_errors`.
    p : np.ndarray, optional
        (n,) predicted probabilities of success.
    cost : sequence of Sigma2Parts, optional
        One per prompt, from `sigma2_parts`.
    """

    errors: PrefixErrors
    p: np.ndarray | None = None
    cost: Sequence[Sigma2Parts] | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Figures of model a minus those of model b, intervals over prompts.

    Attributes
    ----------
    n_prompts, n_prefixes : int
        Sizes of the sample.
    n_common : int
        Prefixes at which both models have a log error: the others are in neither.
    squared_ratio_error, mean_square_corrected, signed_mean : Interval
        Of (rho - 1)^2, of b^2 with its noise removed and of b in nats, as in `BellmanSummary`; each over the
        prefixes at which both models have it.
    brier : Interval or None
        Of the mean squared difference of p and outcome; None without p.
    sigma2 : Interval or None
        Of the pooled sigma^2; None without the parts.
    """

    n_prompts: int
    n_prefixes: int
    n_common: int
    squared_ratio_error: Interval
    mean_square_corrected: Interval
    signed_mean: Interval
    brier: Interval | None
    sigma2: Interval | None

    def figures(self) -> dict[str, Interval]:
        """Return the differences that exist, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Interval)}

    def _caption(self) -> str:
        return f"a minus b, paired over {self.n_prompts} prompts, {self.n_prefixes} prefixes"

    def __str__(self) -> str:
        rows = (f"{name:<24}{value}" for name, value in self.figures().items())
        return "\n".join([self._caption(), *rows])

    def _repr_html_(self) -> str:
        from rmtools.plots.page import Table, html_table

        rows = tuple((name, str(value)) for name, value in self.figures().items())
        return html_table(Table(self._caption(), ("", "a minus b"), rows))

    def to_frame(self) -> "DataFrame":
        """Return a row per figure: ``figure``, ``estimate``, ``low``, ``high``; NaN for what is not available."""
        from pandas import DataFrame

        frame = DataFrame([{"figure": name, **vars(value)} for name, value in self.figures().items()])
        return frame.astype({"estimate": float, "low": float, "high": float})

    def plot(self) -> "Figure":
        """Return a matplotlib figure: each difference with its interval, on its own axis, beside 0."""
        from rmtools.codec import to_json
        from rmtools.plots import differences

        return differences(to_json(self.figures()))


def paired_estimator(
    a: ModelEstimates,
    b: ModelEstimates,
    prompt: np.ndarray,
    outcome: np.ndarray | None = None,
    outcome_prompt: np.ndarray | None = None,
) -> Estimator[PairedDifference]:
    """Compare two models on the same rollouts: a minus b, negative if a has the smaller error.

    Parameters
    ----------
    a, b : ModelEstimates
        Of the same prefixes, predictions and prompts in the same order.
    prompt : np.ndarray
        (P,) label of each prefix's prompt.
    outcome, outcome_prompt : np.ndarray, optional
        (n,) rewards in [0, 1] that `p` predicts, and their prompts.

    Raises
    ------
    UserError
        If the two do not fit each other: numbers of prefixes, of predictions or of prompts, or Z^2 of a prompt;
        or if one has what the other lacks.

    Notes
    -----
    Source: docs/equations.md section 6; sigma^2 section 5.
    """
    n = len(a.errors)
    if len(b.errors) != n or n == 0:
        raise UserError(
            f"the models have {n} and {len(b.errors)} prefixes", fix="score both on the same rollouts"
        )
    differences = {
        "squared_ratio_error": a.errors.squared_error - b.errors.squared_error,
        "mean_square_corrected": a.errors.log_error_square - b.errors.log_error_square,
        "signed_mean": a.errors.log_error - b.errors.log_error,
    }
    problems = {name: weighted_mean(difference, prompt) for name, difference in differences.items()}
    problems |= _brier(a, b, outcome, outcome_prompt) | _sigma2(a, b)
    common = np.isfinite(a.errors.log_error) & np.isfinite(b.errors.log_error)

    def result(found: Mapping[str, Interval]) -> PairedDifference:
        absent: dict[str, Any] = dict.fromkeys(("brier", "sigma2"))
        n_prompts, n_common = len(np.unique(prompt)), int(common.sum())
        return PairedDifference(n_prompts, n, n_common, **(absent | dict(found)))

    return Estimator(problems, result)


def _brier(
    a: ModelEstimates, b: ModelEstimates, outcome: np.ndarray | None, prompt: np.ndarray | None
) -> dict[str, tuple[np.ndarray, Statistic]]:
    given = [x is not None for x in (a.p, b.p, outcome, prompt)]
    if not any(given):
        return {}
    if a.p is None or b.p is None or outcome is None or prompt is None:
        raise UserError(
            "a Brier score takes `p` of both models, `outcome` and `outcome_prompt`",
            fix="pass all four or none",
        )
    for p in (a.p, b.p):
        brier(p, outcome)  # refuses shapes that do not fit, NaN, and what is no probability
    return {"brier": weighted_mean((a.p - outcome) ** 2 - (b.p - outcome) ** 2, prompt)}


def _sigma2(a: ModelEstimates, b: ModelEstimates) -> dict[str, tuple[np.ndarray, Statistic]]:
    if a.cost is None and b.cost is None:
        return {}
    if a.cost is None or b.cost is None or len(a.cost) != len(b.cost) or not len(a.cost):
        raise UserError(
            "a difference of sigma^2 takes the parts of both models at the same prompts, at least one",
            fix="pass `cost` of both or of neither",
        )
    for i, (x, y) in enumerate(zip(a.cost, b.cost, strict=True)):
        if x.n_terms != y.n_terms or not math.isclose(x.z_square, y.z_square, rel_tol=1e-9, abs_tol=1e-300):
            raise UserError(
                f"prompt {i} has T = {x.n_terms} and Z^2 = {x.z_square:g} with one model, {y.n_terms} and "
                f"{y.z_square:g} with the other",
                fix="both come from the same trajectories: make the parts from the same potentials",
            )
    sums = [(x.numerator - y.numerator, x.z_square) for x, y in zip(a.cost, b.cost, strict=True)]
    return {"sigma2": (np.array(sums), ratio_of_means)}
