"""Named algorithms as points among the settings of one sampler, and what contradicts what."""

import pytest

from rmtools.errors import UserError
from rmtools.sampling.sample_prompts import PRESETS, SamplerSettings, settings_for

EXPECTED = {  # N, M, resampling, threshold, H, sweeps, output: docs/equations.md section 4
    "smc": (16, 1, "systematic", 0.5, 0, 0, "draw"),
    "sp-gsmc": (1, 16, "systematic", 0.5, 0, 0, "draw"),
    "guided": (4, 4, "systematic", 0.5, 0, 0, "draw"),
    "mh": (1, 16, "systematic", 0.5, 8, 0, "draw"),
    "gibbs": (16, 1, "multinomial", 1.0, 0, 8, "draw"),
    "importance": (16, 1, "none", 0.0, 0, 0, "draw"),
    "best-of-n": (16, 1, "none", 0.0, 0, 0, "argmax"),
    "majority": (16, 1, "none", 0.0, 0, 0, "majority"),
    "weighted-majority": (16, 1, "none", 0.0, 0, 0, "weighted-majority"),
    "beam": (4, 4, "top_k", 1.0, 0, 0, "argmax"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_presets(name):
    s = settings_for(name)
    found = (s.n_particles, s.pool_size, s.resampling, s.ess_threshold, s.mh_steps, s.sweeps, s.output)
    assert found == EXPECTED[name]
    assert s.algorithm == name
    assert set(EXPECTED) == set(PRESETS)


@pytest.mark.parametrize(
    ("settings", "name", "output"),
    [
        (SamplerSettings(16), "smc", "draw"),
        (SamplerSettings(1, 8), "sp-gsmc", "draw"),
        (SamplerSettings(4, 8, "none"), "guided", "draw"),
        (SamplerSettings(4, 1, "none"), "importance", "draw"),
        (SamplerSettings(4, 1, "systematic", 0.0), "importance", "draw"),
        (SamplerSettings(4, 8, "top_k"), "beam", "argmax"),
        (SamplerSettings(4, mh_steps=2), "mh", "draw"),
        (SamplerSettings(4, 1, "multinomial", 1.0, sweeps=2), "gibbs", "draw"),
    ],
)
def test_settings_without_a_name_get_the_one_that_fits(settings, name, output):
    assert (settings.algorithm, settings.output) == (name, output)


def test_options_move_a_preset():
    assert settings_for("best-of-n", n_particles=64).n_particles == 64
    assert settings_for("smc", resampling="residual", ess_threshold=1.0).resampling == "residual"
    assert settings_for("guided", output="majority").output == "majority"
    wrapped = settings_for("importance", mh_steps=4)
    assert (wrapped.algorithm, wrapped.mh_steps, wrapped.resampling) == ("mh", 4, "none")
    # Without a name the flags mean what they always did.
    plain = settings_for(None, n_particles=8, resampling="top_k")
    assert (plain.pool_size, plain.algorithm, plain.output) == (1, "beam", "argmax")
    assert settings_for(None, resampling="none").ess_threshold == 0.5


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("sp-gsmc", {"n_particles": 16}, ["sp-gsmc", "`n_particles` 16", "single particle"]),
        ("sp-gsmc", {"pool_size": 1}, ["`pool_size` 1", "guide nothing"]),
        ("guided", {"pool_size": 1}, ["it is algorithm smc"]),
        ("smc", {"resampling": "top_k"}, ["that is algorithm beam"]),
        ("smc", {"sweeps": 3}, ["`sweeps` 3", "particle Gibbs"]),
        ("mh", {"mh_steps": 0}, ["`mh_steps` 0", "first run"]),
        ("gibbs", {"resampling": "systematic"}, ["independent draws"]),
        ("gibbs", {"ess_threshold": 0.5}, ["every step"]),
        ("gibbs", {"n_particles": 1}, ["`n_particles` 1", "reference"]),
        ("gibbs", {"mh_steps": 3}, ["estimates no Z"]),
        ("importance", {"resampling": "systematic"}, ["independently", "algorithm smc"]),
        ("best-of-n", {"pool_size": 4}, ["`pool_size` 4", "algorithm guided"]),
        ("majority", {"ess_threshold": 0.5}, ["`ess_threshold` 0.5"]),
        ("beam", {"output": "draw"}, ["`output` draw", "no law"]),
        ("beam", {"resampling": "systematic"}, ["algorithm guided"]),
        ("beam", {"mh_steps": 2}, ["no Z"]),
        ("beam", {"max_tokens": 10_000}, ["a budget", "no Z"]),
        ("beam", {"pool_size": 1}, ["nothing to choose"]),
        (None, {"resampling": "top_k", "output": "draw"}, ["no law"]),
        (None, {"sweeps": 4}, ["multinomial resampling at every step", "`algorithm` gibbs"]),
        (None, {"mh_steps": 2, "sweeps": 4}, ["two chains"]),
        ("mh", {"mh_steps": 4, "max_tokens": 10_000}, ["`mh_steps` contradicts a budget", "`algorithm` mh"]),
        ("gibbs", {"sweeps": 4, "max_seconds": 1.0}, ["`sweeps` contradicts a budget"]),
        ("smc", {"max_tokens": 15}, ["too few for one run", "16 tokens"]),
        ("smc", {"max_seconds": 0.0}, ["positive"]),
        ("nuts", {}, ["unknown algorithm 'nuts'", "best-of-n"]),
        ("smc", {"output": "mode"}, ["unknown output 'mode'", "draw, argmax"]),
        ("smc", {"n_particles": 0}, ["at least 1, got 0"]),
        ("guided", {"pool_size": -1}, ["at least 1, got -1"]),
        (None, {"mh_steps": -1}, ["at least 0, got -1"]),
        (None, {"resampling": "lottery"}, ["unknown resampling 'lottery'", "systematic"]),
        ("smc", {"resampling": "lottery"}, ["unknown resampling 'lottery'"]),
        (None, {"ess_threshold": float("nan")}, ["[0, 1]"]),
        (None, {"max_seconds": float("inf")}, ["positive and finite, got inf"]),
        (None, {"pool_size": 0}, ["`pool_size` must be an integer of at least 1, got 0"]),
        (None, {"n_particles": 10**7}, ["more than 1,000,000 candidates", "delta"]),
        ("guided", {"n_particles": 10**4, "pool_size": 101}, ["N = 10000, M = 101: more than"]),
        (None, {"terminal": "judge"}, ["unknown terminal"]),
    ],
)
def test_contradictions_say_why(name, given, words):
    with pytest.raises(UserError) as error:
        settings_for(name, **given)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "magic"}, "unknown algorithm"),
        ({"algorithm": "gibbs"}, "not those of gibbs"),
        ({"algorithm": "mh"}, "not those of mh"),
        ({"algorithm": "beam"}, "not those of beam"),
        ({"algorithm": "smc", "mh_steps": 2}, "are those of mh"),
        ({"algorithm": "smc", "resampling": "top_k", "output": "argmax"}, "are those of beam"),
    ],
)
def test_names_given_directly_are_not_taken_on_trust(settings, words):
    with pytest.raises(UserError, match=words):
        SamplerSettings(3, **settings)
