"""Particles for an accuracy, read from an audit: scaled to what is asked, refused where the audit is of something else."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from rmtools.auditing import audit, read_report
from rmtools.auditing.accuracy import Accuracy, Sampled, particles_for
from rmtools.auditing.page import write_report
from rmtools.codec import to_json
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata
from rmtools.errors import UserError
from rmtools.lm.checkpoint import fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policy, policy_folder, value_folder, task, settings):
    """An audit that resolves both: 12 prompts, 64 trajectories with 4 completions at every prefix."""
    rng = np.random.default_rng(2)
    prompts, _ = task.prompts(12, rng)
    rows = Collector(policy, task, Branching(64, 1, 4), rng).collect(prompts)
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, 0
    )
    report = audit((rows, metadata), value_folder, controls=False, delta_cv=0.25, delta_tv=0.1)
    out = tmp_path_factory.mktemp("audit")
    write_report(report, out)
    return out


@pytest.fixture
def sampled(policy_folder, value_folder):
    return Sampled(
        str(value_folder),
        fingerprint(value_folder),
        str(policy_folder),
        fingerprint(policy_folder),
        1.0,
        0.05,
        "crossing",
        "verifier",
    )


@pytest.mark.parametrize("text", ["tv=.05", "cv=.1", "cv=1.5", " tv=0.5"])
def test_what_can_be_asked(text):
    assert Accuracy.parse(str(Accuracy.parse(text))) == Accuracy.parse(text)


@pytest.mark.parametrize(
    "text", ["tv", "tv=", "tv=0", "tv=1", "cv=-1", "cv=inf", "tv=nan", "kl=.1", ".05", ""]
)
def test_what_cannot(text):
    with pytest.raises(UserError, match=r"`accuracy` tv=\.05 or cv=\.1"):
        Accuracy.parse(text)


def test_the_audit_is_scaled_to_what_is_asked(folder, sampled):
    """At its own deltas its own particles; elsewhere as SD / (2 delta) and sigma^2 / delta^2."""
    model = read_report(folder / "audit.json").model
    for norm, delta, known in (("tv", 0.1, model.cost.n_for_tv), ("cv", 0.25, model.cost.n_for_cv)):
        found = particles_for(Accuracy(norm, delta), folder, sampled)
        assert found.particles.estimate == pytest.approx(known.estimate)
        assert found.n_particles == math.ceil(known.estimate)
        finer = particles_for(Accuracy(norm, delta / 2), folder / "audit.json", sampled)
        assert finer.n_particles > found.n_particles
    assert particles_for(Accuracy("tv", 0.02), folder, sampled).particles.estimate == pytest.approx(
        model.cost.influence.sd.estimate / 0.04
    )
    cv = particles_for(Accuracy("cv", 0.05), folder, sampled)
    assert cv.particles.estimate == pytest.approx(model.cost.sigma2.estimate.estimate / 0.0025)
    assert str(cv).startswith(f"N = {cv.n_particles} for cv=0.05")
    assert "25 sigma^2" not in str(cv)
    assert "rollouts of" in str(cv)
    assert ": at most " in str(particles_for(Accuracy("tv", 0.02), folder, sampled))
    coarse = particles_for(Accuracy("cv", 50.0), folder, sampled)
    assert (coarse.n_particles, "25 sigma^2" in str(coarse)) == (1, True)
    assert json.dumps(to_json(cv), allow_nan=False)


def test_tables_that_hold_every_prompt_come_first(folder, sampled, tmp_path):
    """Exact spreads, as in the audit itself, whatever the rollouts resolve."""
    values = json.loads((folder / "audit.json").read_text())
    known = {"estimate": 3.0, "low": 2.0, "high": 4.0}
    values["models"][0]["cost"] |= {
        "counted_from": "tables",
        "influence": None,
        "sigma2": None,
        "tabulated": {"sigma2": known, "perfect": known, "ratio": known, "mad": {**known, "estimate": 2.5}}
        | {"n_prompts": 12, "uncovered": 0.0},
    }
    (tmp_path / "audit.json").write_text(json.dumps(values))
    tv = particles_for(Accuracy("tv", 0.05), tmp_path, sampled)
    assert (tv.n_particles, tv.particles.high) == (25, pytest.approx(40))
    assert ": 25 [20, 40] particles by the tables of" in str(tv)
    assert particles_for(Accuracy("cv", 0.1), tmp_path, sampled).n_particles == 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_fingerprint": "other"}, ["other weights of the model", "rmtools audit"]),
        ({"policy_fingerprint": "other"}, ["another policy"]),
        ({"policy_fingerprint": "", "policy": "hub/other"}, ["another policy", "hub/other here"]),
        ({"temperature": 0.7}, ["temperature", "1.0 there, 0.7 here"]),
        ({"top_k": 5}, ["top_k", "0 there, 5 here"]),
        ({"top_p": 0.9}, ["top_p", "1.0 there, 0.9 here"]),
        ({"min_p": 0.1}, ["min_p", "0.0 there, 0.1 here"]),
        ({"floor": 0.01}, ["floor", "0.05 there, 0.01 here"]),
        ({"task": "arithmetic"}, ["task", "crossing there"]),
        ({"terminal": "model"}, ["terminal", "`terminal` verifier"]),
    ],
)
def test_an_audit_of_something_else_is_refused(folder, sampled, change, words):
    with pytest.raises(UserError) as error:
        particles_for(Accuracy("tv", 0.1), folder, replace(sampled, **change))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("edit", "norm", "words"),
    [
        (
            lambda v: v["models"][0]["cost"].update(influence=None),
            "tv",
            ["does not resolve", "completions"],
        ),
        (
            lambda v: v["models"][0]["cost"]["influence"].update(effective_trajectories=1.0),
            "tv",
            ["does not resolve"],
        ),
        (
            lambda v: v["models"][0]["cost"]["influence"]["sd"].update(estimate=0.0),
            "tv",
            ["does not resolve"],
        ),
        (lambda v: v["models"][0]["cost"].update(sigma2=None), "cv", ["does not resolve"]),
        (lambda v: v["models"][0]["cost"]["sigma2"].update(resolved=False), "cv", ["does not resolve"]),
        (
            lambda v: v["models"][0]["cost"]["sigma2"]["estimate"].update(estimate=-1.0),
            "cv",
            ["does not resolve"],
        ),
        (lambda v: v["provenance"].pop("checkpoint_fingerprint"), "tv", ["does not say", "again"]),
        (lambda v: v["provenance"].update(policy="", policy_fingerprint=""), "tv", ["does not say"]),
        (lambda v: v.update(schema_version=1), "tv", ["audit.json has schema version 1", "rmtools 0.1.0"]),
        (lambda v: v.pop("models"), "tv", ["audit.json: it lacks models"]),
        (lambda v: v.update(schema_version=1), "tv", ["schema version 1"]),
    ],
)
def test_an_audit_that_does_not_say(folder, sampled, tmp_path, edit, norm, words):
    values = json.loads((folder / "audit.json").read_text())
    edit(values)
    (tmp_path / "audit.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        particles_for(Accuracy(norm, 0.1), tmp_path, sampled)
    for word in words:
        assert word in str(error.value)


def test_no_audit_at_all(sampled, tmp_path):
    for place in (tmp_path, tmp_path / "none", tmp_path / "none.json"):
        with pytest.raises(UserError, match="there is none at"):
            particles_for(Accuracy("tv", 0.1), place, sampled)
    for text, words in (("{", "not valid JSON"), ("[]", "no JSON object")):
        (tmp_path / "audit.json").write_text(text)
        with pytest.raises(UserError, match=words):
            particles_for(Accuracy("tv", 0.1), tmp_path, sampled)
