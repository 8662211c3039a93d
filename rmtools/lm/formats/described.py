"""A published PRM in words: what its p means, where its values come from, and whether its labels have any mass."""

from typing import Any

from rmtools.lm.formats.conventions import Convention
from rmtools.lm.formats.reading import FIRST_STEPS, Reading

LEAST_MASS = 0.5
MEANS = {
    "value": "p estimates a value",
    "judgement": "p judges steps: its Bellman error also measures how a judgement differs from a value",
    "depends": "p is taken as an estimate of a value",
}
AGGREGATED = {
    "last": "that of its last step",
    "product": "the product over its steps",
    "min": "the least of its steps",
    "mean": "the mean over its steps",
}


def described(scorer: Any) -> dict[str, str]:
    """Return what a report says of a published PRM, {} for another scorer.

    Keys: ``format``, ``meaning`` (value or judgement), ``root``, ``aggregate``, and ``sentence``, all of it in words.
    """
    known: Convention | None = getattr(scorer, "convention", None)
    if known is None:
        return {}
    reading: Reading = scorer.reading
    root = _root(known, reading)
    shown = "" if known.verbatim or known.head == "ratio" else AGGREGATED[reading.aggregate]
    sentence = f"Format {known.key} ({scorer.told_by}); {MEANS[known.meaning]} ({known.about})"
    if shown:
        sentence += f"; a prefix has {shown}"
    return {
        "format": known.key,
        "meaning": known.meaning,
        "aggregate": reading.aggregate,
        "root": root,
        "sentence": f"{sentence}; the value of a prompt alone: {root}.",
    }


def _root(known: Convention, reading: Reading) -> str:
    if known.head == "ratio":
        return "1, as of any ratio"
    if known.root:
        return "the model's own"
    if reading.root_value == FIRST_STEPS:
        return (
            "the mean over the policy's first steps, every drawn one counted once (its Bellman error there is 0 by "
            "construction)"
        )
    return f"p = {reading.root_value:g}, as given"


def mass_line(scorer: Any) -> str:
    """Return a line on the mass of the labels, "" where none were read."""
    found = getattr(scorer, "label_mass", lambda: None)()
    if found is None:
        return ""
    good, bad = scorer.convention.labels
    return (
        f"labels {good!r} and {bad!r} together: probability {found[0]:.3g} (median), {found[1]:.3g} at least"
    )


def mass_warning(scorer: Any) -> str:
    """Return the warning that the labels have little mass, "" if they have enough."""
    found = getattr(scorer, "label_mass", lambda: None)()
    if found is None or found[0] >= LEAST_MASS:
        return ""
    return (
        f"{scorer.name} hardly expects a label where it is read: {mass_line(scorer)}. The format {scorer.convention.key}, or its "
        "chat template, seems to be another than the model was trained with"
    )
