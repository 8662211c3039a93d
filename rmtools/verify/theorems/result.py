"""What `verify exact` found: one row a check, JSON in and out, a table a person can read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name, on, must_show : str
        What is checked, on which models, and what must hold.
    found : str
        The figures in one line.
    holds : bool
    cases : list of dict
        Every case's figures.
    seconds : float
        Of one process, summed over the cases.
    """

    name: str
    on: str
    must_show: str
    found: str
    holds: bool
    cases: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class ExactVerification:
    """All checks of a run.

    Attributes
    ----------
    checks : tuple of Check
    quick : bool
    seed : int
    seconds : float
        On the clock.
    """

    checks: tuple[Check, ...]
    quick: bool
    seed: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; a figure that a failing check could not compute is null."""
        values = {"schema_version": SCHEMA_VERSION, "holds": self.holds, **asdict(self)}
        return {key: without_nan(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExactVerification":
        """Return what `to_dict` wrote.

        Raises
        ------
        ValueError
            For another schema version.
        """
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {values['schema_version']} is not {SCHEMA_VERSION}")
        checks = tuple(Check(**check) for check in values["checks"])
        return cls(checks, values["quick"], values["seed"], values["seconds"])

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            verdict = "holds" if check.holds else "FAILS"
            lines.append(f"{verdict}  {check.name:<{width}}  {check.found}")
        kept = sum(check.holds for check in self.checks)
        kind = "quick" if self.quick else "full"
        lines.append(
            f"{kept} of {len(self.checks)} checks hold ({kind}, {self.seconds:.0f} s, seed {self.seed})"
        )
        return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """Return ``value`` with NaN and infinities, which are not JSON, as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(x) for key, x in value.items()}
    return [without_nan(x) for x in value] if isinstance(value, list | tuple) else value


def failures(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the labels of the cases that do not hold."""
    return [case["label"] for case in cases if not case["holds"]]


def counted(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return how many cases hold, and which do not."""
    failed = failures(cases)
    text = f"{len(cases) - len(failed)}/{len(cases)} cases"
    return text if not failed else f"{text}, not: {'; '.join(failed[:4])}{' …' * (len(failed) > 4)}"
