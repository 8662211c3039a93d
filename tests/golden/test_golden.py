"""A small training and audit against recorded figures: no formula and no default moves unnoticed.

Bit-equality on another CPU is not promised: another vector width adds in another order, so sums in fp32 differ by about 1e-7 of
their size. Between AVX2 and no vector instructions at all, losses moved by 3e-8, log values by 2e-7, an audit's figures
by 2e-6: TOLERANCES are thirty times that. A thousandth part of one term of a divergence moves a loss by 5e-4, and a learning
rate of 6e-5 instead of 5e-5 is seen as such.
"""

import json
import sys

import pytest
from record import ENVIRONMENT, FIGURES, differences, environment, figures, main

# Of absolute differences (relative ones of figures above 1): the largest, and the mean over a list.
TOLERANCES = {
    "loss": (1e-6, 1e-6),
    "log values": (5e-6, 1e-6),
    "learning_rate": (1e-9, 1e-9),
    "audit": (5e-5, 2e-5),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return figures(tmp_path_factory.mktemp("golden"))


def test_figures_are_those_recorded(found):
    recorded = json.loads(FIGURES.read_text())
    moved = []
    for name, before in recorded.items():
        d = differences(found.get(name, []), before)
        most, mean = next(limits for part, limits in TOLERANCES.items() if part in name)
        if not (d.max() <= most and d.mean() <= mean):
            moved.append(f"{name}: max {d.max():.2g} ({most:g}), mean {d.mean():.2g} ({mean:g})")
    then, now = json.loads(ENVIRONMENT.read_text()), environment()
    other = {k: f"{then[k]} -> {now.get(k)}" for k in then if then[k] != now.get(k)}
    assert not moved, "\n".join([*moved, f"environment: {other or 'as recorded'}", "if meant: record.py"])


def test_every_training_is_different(found):
    """Otherwise one of the divergences is not reached by its name."""
    losses = [tuple(values) for name, values in found.items() if name.endswith(": loss")]
    assert len(set(losses)) == len(losses) == 7


def test_missing_figures_differ_without_bound():
    assert differences([], [1.0]).max() == differences([1.0], []).max() == float("inf")
    assert differences([None], [1.0]).max() == float("inf")
    assert not differences([float("nan")], [1.0]).max() <= 1
    assert differences([None, 2.0], [None, 2.5]).max() == pytest.approx(0.2)


def test_a_record_is_not_replaced_unasked(monkeypatch, capsys):
    before = FIGURES.read_bytes(), ENVIRONMENT.read_bytes()
    monkeypatch.setattr(sys, "argv", ["record.py"])
    assert main() == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (FIGURES.read_bytes(), ENVIRONMENT.read_bytes()) == before
