"""How many particles an accuracy takes, read from the audit of the model.

A total variation delta takes MAD(H) / (2 delta) particles, or at most SD(H) / (2 delta); a coefficient of variation of Z
takes sigma^2 / delta^2 (docs/equations.md section 5). This holds for multinomial resampling at every step, pool 1, pooled over
the audit's prompts.

>>> Accuracy.parse("tv=.05"), str(Accuracy.parse("cv=.1"))
(Accuracy(norm='tv', delta=0.05), 'cv=0.1')
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rmtools.auditing.cost import particles
from rmtools.auditing.model_audit import CostAudit
from rmtools.auditing.report import JSON_FILE, read_report
from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval
from rmtools.stats.sigma2 import n_for_cv, n_for_tv

NORMS = {
    "tv": "total variation of the weighted draw from the target",
    "cv": "coefficient of variation of Z",
}
DIFFERENT = "sample what was audited, or run `rmtools audit` on what is sampled"


@dataclass(frozen=True)
class Accuracy:
    """The requested accuracy: ``tv`` or ``cv``, and how small."""

    norm: str
    delta: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a text like ``tv=.05``; raise ``UserError`` if it is no accuracy."""
        norm, _, number = text.partition("=")
        try:
            found = cls(norm.strip(), float(number))
        except ValueError:
            found = cls("", math.nan)
        if found.norm not in NORMS or not 1e-6 <= found.delta < (1 if found.norm == "tv" else math.inf):
            raise UserError(
                f"`accuracy` is {text!r}: it must be a total variation below 1 or a coefficient of variation of Z, at least 1e-6",
                "`accuracy` tv=.05 or cv=.1",
            )
        return found

    def __str__(self) -> str:
        return f"{self.norm}={self.delta:g}"


@dataclass(frozen=True)
class Sampled:
    """Identifies a sampling run; must match the audit."""

    model: str
    model_fingerprint: str
    policy: str
    policy_fingerprint: str
    temperature: float
    floor: float
    task: str
    terminal: str
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass(frozen=True)
class Predicted:
    """Particles for the accuracy ``asked``, as a record of samples says them.

    ``n_particles`` is the estimate rounded up, ``particles`` not rounded, 95% over the prompts of the ``audit`` (its file);
    ``counted_from`` is ``tables`` or ``rollouts``, as there.
    """

    asked: str
    n_particles: int
    particles: Interval
    counted_from: str
    audit: Path

    def __str__(self) -> str:
        accuracy = Accuracy.parse(self.asked)
        most = "at most " if (accuracy.norm, self.counted_from) == ("tv", "rollouts") else ""
        early = accuracy.norm == "cv" and 25 * accuracy.delta**2 > 1
        return (
            f"N = {self.n_particles} for {accuracy} ({NORMS[accuracy.norm]}): {most}{self.particles} particles by "
            f"the {self.counted_from} of {self.audit}, pooled over its prompts, multinomial resampling at every step"
            + ("; the prediction is exact from 25 sigma^2 particles on, these are fewer" if early else "")
        )


def particles_for(accuracy: Accuracy, audit: Path, sampled: Sampled) -> Predicted:
    """Return how many particles ``accuracy`` takes by ``audit``, a folder with ``audit.json`` or that file.

    Raises
    ------
    UserError
        If there is no audit, it cannot be read, was made with other weights, policy, task, floor or terminal, or does
        not resolve what the particles are computed from.
    """
    file = audit / JSON_FILE if audit.is_dir() or audit.suffix != ".json" else audit
    if not file.exists():
        raise UserError(
            f"`accuracy` reads the audit of {sampled.model}, and there is none at {file}",
            "audit this model with `rmtools audit`, or name the folder of an audit with `audit`",
        )
    report = read_report(file)
    _require_same(file, report.provenance, sampled)
    cost = report.model.cost
    needed = particles(
        _spread(cost, accuracy.norm), n_for_tv if accuracy.norm == "tv" else n_for_cv, accuracy.delta
    )
    if needed is None or needed.estimate == math.inf:
        raise UserError(
            f"the audit {file} does not resolve how many particles {accuracy} takes",
            "audit with 4 completions per prefix, and more trajectories or prompts; the audit's notes say what is missing",
        )
    return Predicted(str(accuracy), math.ceil(needed.estimate), needed, cost.counted_from, file)


def _spread(cost: CostAudit, norm: str) -> Interval | None:
    """Return what particles are counted from: tables if there are any, else rollouts; None if not resolved."""
    if cost.counted_from == "tables" and cost.tabulated is not None:
        return cost.tabulated.mad if norm == "tv" else cost.tabulated.sigma2
    if norm == "tv":
        return cost.influence.sd if cost.influence is not None and cost.influence.resolved else None
    return cost.sigma2.estimate if cost.sigma2 is not None and cost.sigma2.resolved else None


def _require_same(file: Path, provenance: Mapping[str, Any], sampled: Sampled) -> None:
    """Raise ``UserError`` naming the first setting in which audit and sampler differ."""
    policies = provenance.get("policy_fingerprint", ""), sampled.policy_fingerprint
    if not all(policies):  # names, if the fingerprint of one is not known
        policies = provenance.get("policy", ""), sampled.policy
    for what, there, here in (
        ("other weights of the model", provenance.get("checkpoint_fingerprint"), sampled.model_fingerprint),
        ("another policy", *policies),
        ("another temperature of the policy", provenance.get("temperature"), sampled.temperature),
        ("another top_k of the policy", provenance.get("top_k", 0), sampled.top_k),
        ("another top_p of the policy", provenance.get("top_p", 1.0), sampled.top_p),
        ("another min_p of the policy", provenance.get("min_p", 0.0), sampled.min_p),
        ("another floor of the tilt", provenance.get("floor"), sampled.floor),
        ("another task", provenance.get("task") or sampled.task, sampled.task),
        ("another terminal", provenance.get("terminal"), sampled.terminal),
    ):
        if there in (None, ""):
            raise UserError(
                f"the audit {file} does not say what was audited: {what} cannot be ruled out",
                "run `rmtools audit` again with this release, on rollouts of the policy",
            )
        if there != here:
            fix = f"`terminal` {there}" if what == "another terminal" else DIFFERENT
            raise UserError(f"the audit {file} was made with {what}: {there} there, {here} here", fix)
