"""What `benchmarks/lm_law.py` says of its figures: verdicts that can fail, the page, the picture."""

import itertools
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import lm_law
import lm_law_parts as parts

from rmtools.plots.accuracy import sampler_law


def distance(prompt, n, m=1, tv=None, **changes):
    tv = 0.5 / n if tv is None else tv
    row = {"prompt": prompt, "n": n, "m": m, "runs": 6000, "tv": tv, "tv_error": 0.03 * tv}
    row |= {"signed": tv, "signed_error": 0.03 * tv, "predicted": 0.5 / n, "judged": n >= 32, "sigma2": 3.0}
    row |= {"tv_frequencies": 0.02, "floor": 0.02, "floor_high": 0.03, "z": 1.0, "mean_ratio": 1.0}
    return row | {"witness": 2.0, "witness_cells": 20} | changes


def chain(prompt, steps, tv):
    row = {"prompt": prompt, "sampler": "SMC, N = 4", "mh_steps": steps, "chains": 20_000}
    return row | {"tv": tv, "tv_error": 0.003, "tv_frequencies": tv + 0.02, "floor": 0.02, "floor_high": 0.03}


def gibbs(prompt, control, p):
    row = {"prompt": prompt, "sampler": "N = 4", "sweep": 1, "control": control}
    return row | {"samples": 4000.0, "cells": 30.0, "statistic": 28.0, "p_value": p}


def figures():
    sizes = itertools.product((1, 2), parts.POOLS, parts.POOL_SIZES)
    default = [distance(k, n) for k in (1, 2) for n in parts.DEFAULT_SIZES]
    return {
        "pools": [distance(k, n, m) for k, m, n in sizes],
        "metropolis": [chain(k, h, 0.3 / 2**h) for k in (1, 2) for h in parts.PROPOSALS],
        "gibbs": [gibbs(1, False, 0.4), gibbs(1, True, 1e-30)],
        "gibbs-tables": [gibbs(1, False, 0.6), gibbs(1, True, 0.0)],
        "default": default,
        "default-tables": [dict(r) for r in default],
    }


def unmet(found):
    return [v["requirement"] for v in lm_law.verdicts(found) if not v["met"]]


def test_figures_that_meet_every_line():
    assert unmet(figures()) == []
    assert len(lm_law.verdicts(figures())) == 9
    assert len(lm_law.verdicts({"gibbs": figures()["gibbs"]})) == 3


@pytest.mark.parametrize(
    ("part", "row", "changes", "said"),
    [
        ("pools", 3, {"signed": 0.7 / 128, "signed_error": 0.0001}, "multinomial"),
        ("pools", 3, {"tv_frequencies": 0.04}, "multinomial"),
        ("pools", 2, {"signed": 0.05, "signed_error": 0.01}, "multinomial"),
        ("metropolis", 4, {"tv": 0.2}, "Metropolis"),
        ("metropolis", 1, {"tv": 0.295}, "Metropolis"),
        ("gibbs", 0, {"p_value": 1e-5}, "gibbs"),
        ("gibbs-tables", 1, {"p_value": 0.2}, "gibbs-tables"),
        ("default", 13, {"tv": 0.5 / 512 * 2, "tv_error": 0.0001}, "default: slope"),
        ("default-tables", 0, {"tv": 0.5 / 8 * 1.5}, "default setting"),
        ("pools", 0, {"z": -4.6}, "mean of Zhat"),
        ("default", 0, {"witness": 4.6}, "E[Zhat law]"),
    ],
)
def test_a_figure_that_misses_its_line_is_named(part, row, changes, said):
    found = figures()
    found[part][row] |= changes
    assert any(requirement.startswith(said) for requirement in unmet(found))


def test_what_is_not_of_first_order_is_not_judged_against_the_prediction():
    found = figures()
    found["pools"][0] |= {"signed": 0.1, "tv_frequencies": 0.2}
    assert not found["pools"][0]["judged"]
    assert unmet(found) == []


def test_a_distance_that_is_not_positive_has_no_slope():
    found = figures()
    found["default"][5] |= {"tv": -0.001}
    assert any(requirement.startswith("default: slope") for requirement in unmet(found))
    sampler_law(found)


def test_page_and_picture_have_every_part():
    found = figures()
    prompt = {
        "prompt": "r2",
        "paths": 400,
        "uncovered": 0.001,
        "z": 0.1,
        "sigma2": 3.0,
        "mad": [1.0, 0.8, 0.7],
    }
    page = lm_law.markdown(
        {"command": "c", "prompts": [prompt], "requirements": lm_law.verdicts(found), "parts": found}
    )
    assert all(f"\n## {part}\n" in page for part in found)
    assert "**not met**" not in page
    assert sampler_law(found).startswith("<svg")
    assert sampler_law({"pools": found["pools"]}).startswith("<svg")
