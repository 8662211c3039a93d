"""What a run and an exact solution print, as text, table, frame and figure."""

import numpy as np
import pytest
from traced_words import words

from rmtools.core import FiniteModel, Tilt, product, random_tree, smc, solve


def run(groups=3, n=8, m=1, **settings):
    model = random_tree(5, 2, 0.8, Tilt(0.05), np.random.default_rng(0))
    return smc(model.particles(groups), n, m, rng=np.random.default_rng(1), **settings)


@pytest.mark.parametrize("history", [True, False])
def test_a_frame_has_a_row_per_group_and_step(history):
    result = run(ess_threshold=0.9, history=history)
    frame = result.to_frame()
    assert frame["group"].tolist() == [g for g in range(3) for _ in range(5)]
    assert frame["step"].tolist() == [1, 2, 3, 4, 5] * 3
    np.testing.assert_array_equal(frame["ess"], result.ess.T.ravel())
    np.testing.assert_array_equal(frame["resampled"], result.resampled.T.ravel())
    assert ("unique_ancestors" in frame) == history


def test_steps_that_a_group_only_waits_are_not_its_own():
    root, _ = words((5, 2, 4))
    result = smc(root, 8, ess_threshold=1, rng=np.random.default_rng(0))
    longest = [max(map(len, group)) for group in result.particles.steps()]
    assert len(set(longest)) > 1
    assert result.live.sum(axis=0).tolist() == longest
    assert result.to_frame().groupby("group").size().tolist() == longest
    assert result.resampled.sum(axis=0).tolist() == [n - 1 for n in longest]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ess_threshold": 1.0}, "at 12 of 15 steps"),
        ({"ess_threshold": 0.0}, "importance sampling from the policy"),
        ({"resampling": "none"}, "importance sampling from the policy"),
        ({"resampling": "none", "m": 2}, "guided by its own candidates"),
        ({"resampling": "top_k", "m": 2}, "keeps the best"),
        ({"groups": 1, "ess_threshold": 1.0}, "SMC: 1 group, N = 8"),
    ],
)
def test_the_text_says_how_often_it_resampled(settings, said):
    result = run(**settings)
    assert said in str(result)
    assert said in result._repr_html_()
    assert ("importance" in str(result)) == ("importance" in said)
    assert len(str(result).splitlines()) <= 12
    assert len(repr(result)) < 100


def test_a_dead_root_prints():
    result = smc(
        FiniteModel([[[0.5, 0.5]]], [[-np.inf], [-np.inf, -np.inf]]).particles(2),
        4,
        rng=np.random.default_rng(0),
    )
    assert "-inf" in str(result)
    assert len(result.to_frame()) == 0
    assert result.plot().axes


@pytest.mark.parametrize("groups", [1, 3, 40])
def test_the_figure_has_a_line_per_group(groups):
    result = run(groups=groups, ess_threshold=1.0)
    (ax,) = result.plot().axes
    shown = [line for line in ax.lines if len(line.get_xdata()) == 5]
    assert len(shown) == (groups if groups <= 20 else 21)
    np.testing.assert_array_equal(shown[0].get_ydata(), result.ess[:, 0])


@pytest.mark.parametrize(
    "model", [product(4, 3.0), random_tree(3, 2, 0.6, Tilt(0.05), np.random.default_rng(0))]
)
def test_an_exact_solution_adds_up(model):
    exact = solve(model)
    frame = exact.to_frame()
    assert frame["step"].tolist() == list(range(1, model.horizon + 1))
    assert frame["sigma2"].sum() == pytest.approx(exact.sigma2, rel=1e-12)
    assert frame["bellman_error"].max() == exact.bellman_error
    above, below = exact.plot().axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), frame["bellman_error"])
    assert [bar.get_height() for bar in below.patches] == frame["sigma2"].tolist()
    assert f"{exact.sigma2:.4g}" in str(exact)
    assert f"{exact.log_z:.6g}" in exact._repr_html_()
    assert len(str(exact).splitlines()) <= 12
    assert len(repr(exact)) < 100


def test_a_solution_without_target_prints():
    exact = solve(FiniteModel([[[0.5, 0.5]]], [[0.0], [-np.inf, -np.inf]]))
    assert "Z = 0" in str(exact)
    assert exact.plot().axes
