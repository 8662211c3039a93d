"""The pilot of an audit on a tiny language model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rmtools.auditing import audit
from rmtools.auditing.audit import _final_values
from rmtools.auditing.pilot import PilotRun, evenly, pilot_settings, takes_hours
from rmtools.codec import to_json
from rmtools.data.collect import Branching, Collector
from rmtools.errors import UserError
from rmtools.lm.policy import Policy
from rmtools.lm.precision import Placement
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt
from rmtools.sampling.settings import settings_for
from rmtools.stats.pilot import PilotSampler

SETTINGS = settings_for(None, n_particles=8, islands=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("rmtools.stats.pilot.MOST_RUNS", 0)


@pytest.fixture(scope="module")
def rows(policy, task, prompts):
    return Collector(policy, task, Branching(2, 2, 1), np.random.default_rng(0)).collect(prompts[:3])


def prepared(rows, policy, value, task, settings=SETTINGS):
    return PilotRun.prepare(settings, value, rows, policy, task, None, Placement())


def test_other_figures_stay_as_they_are(rows, value_folder, policy, monkeypatch):
    monkeypatch.setattr("rmtools.stats.pilot.RUNS", 3)
    shown = []

    def progress(label, total):
        from contextlib import nullcontext

        shown.append((label, total))
        return nullcontext(lambda n: None)

    without = audit(rows, value_folder, controls=False, seed=3)
    report = audit(rows, value_folder, controls=False, seed=3, pilot=SETTINGS, progress=progress)
    pilot = report.model.cost.pilot
    assert pilot.sampler == PilotSampler(4, terminal="model")  # the checkpoint's policy
    assert ("pilot runs", pilot.n_prompts * pilot.runs) in shown
    model = replace(report.model, cost=replace(report.model.cost, pilot=None))
    assert to_json(model) == to_json(without.model)
    again = audit(rows, value_folder, controls=False, seed=3, pilot=SETTINGS)
    assert again.model.cost.pilot.uncut == pilot.uncut


def test_islands_of_both_terminals(rows, policy, value, task):
    for terminal in ("model", "verifier"):
        run = prepared(rows, policy, value, task, replace(SETTINGS, terminal=terminal))
        found = run(0.25, np.random.default_rng(0))
        assert (found.n_prompts, found.runs, found.left_out, found.failed) == (3, 68, 0, 0.0)
        assert found.sampler.terminal == terminal
        assert found.tokens > 4


def test_best_of_n_is_weighted_as_the_pilot_is(rows, policy, value, task, monkeypatch):
    """By the pilot's terminal; rewards are no values of the model, and the audit of one has no others."""
    monkeypatch.setattr("rmtools.stats.pilot.FEWEST_CARRYING", 1.0)
    ends = [np.array([-1.0, -0.5 * i]) for i in range(len(rows))]
    own = [np.array([-1.0, -0.1 * i]) for i in range(len(rows))]
    scored = SimpleNamespace(log_value=ends, own_log_value=own)
    assert _final_values(rows, scored, "model", "verifier") is None
    for wanted, values in (("model", own), ("verifier", ends)):
        found = _final_values(rows, scored, "verifier", wanted)
        assert list(found) == list(dict.fromkeys(r.prompt for r in rows))
        assert np.concatenate(list(found.values())).tolist() == [v[-1] for v in values]
    run = prepared(rows, policy, value, task)
    without, paired = run(0.25, np.random.default_rng(0)), run(0.25, np.random.default_rng(0), None, found)
    assert paired.one_solution.estimate == pytest.approx(
        4 * paired.best_of_n.estimate * paired.uncut.estimate
    )
    assert replace(paired, one_solution=None, best_of_n=None, seconds=without.seconds) == without


def test_of_many_prompts_the_first_are_at_even_distances(rows, policy, value, task, monkeypatch):
    assert evenly(5, 8).tolist() == [0, 1, 2, 3, 4]
    assert evenly(9, 3).tolist() == [0, 4, 8]
    many = [replace(rows[0], prompt=rows[0].prompt[: i + 1]) for i in range(8)]
    monkeypatch.setattr("rmtools.auditing.pilot.AT_FIRST", 3)
    for most, places in ((3, [0, 3, 7]), (5, [0, 3, 7, 1, 6]), (99, [0, 3, 7, 1, 2, 4, 5, 6])):
        monkeypatch.setattr("rmtools.auditing.pilot.MOST_PROMPTS", most)
        monkeypatch.setattr("rmtools.auditing.pilot._fits", lambda policy, prompt: True)
        assert prepared(many, policy, value, task).prompts == tuple(many[i].prompt for i in places)


def test_a_constant_with_its_own_ends_has_no_variance(rows, policy, task):
    constant = ConstantValue(0.3, policy.steps, Tilt(0.05))
    found = prepared(rows, policy, constant, task)(0.25, np.random.default_rng(0))
    assert (found.resolved, found.islands_for_cv, found.uncut.estimate) == (True, 4, 0.0)


def test_prompts_longer_than_the_context(rows, policy, value, task, value_folder, monkeypatch):
    longest = max(len(policy.steps.prompt_ids(r.prompt)) for r in rows)
    long = [replace(r, prompt=r.prompt * 40) for r in rows[:2]]
    monkeypatch.setattr(Policy, "context", property(lambda self: longest + 30))
    run = prepared([*rows, *long], policy, value, task)
    assert (len(run.prompts), run.left_out) == (3, 1)
    monkeypatch.setattr(Policy, "context", property(lambda self: 1))
    with pytest.raises(UserError, match="no prompt leaves room"):
        prepared(rows, policy, value, task)(0.25, np.random.default_rng(0))
    report = audit(rows, value_folder, controls=False, policy=policy, pilot=SETTINGS)
    assert report.model.cost.pilot is None
    assert "there is no pilot: no prompt leaves room" in report.warnings[-1]


def test_what_is_refused(rows, policy, value, value_folder, task):
    assert pilot_settings(False) is None
    assert pilot_settings(True) == settings_for(None)
    for wrong, words in (
        (16, "`pilot` must be True"),
        (settings_for("gibbs"), "gibbs with chains"),
        (settings_for(None, max_tokens=1000), "a budget"),
        (settings_for("beam"), "estimates no Z"),
    ):
        with pytest.raises(UserError, match=words):
            audit(rows, value_folder, pilot=wrong)
    with pytest.raises(UserError, match="runs the policy, and none is named"):
        prepared(rows, None, value, task)
    with pytest.raises(UserError, match="needs a task"):
        prepared(rows, policy, value, None, replace(SETTINGS, terminal="verifier"))
    assert not takes_hours(policy, rows, SETTINGS)
