"""Sampling until a figure is known: records against the rule, what the report says, and what is refused."""

import json

import numpy as np
import pytest

from rmtools.cli.sample_run import requested
from rmtools.core import FiniteModel, Tilt, random_tree
from rmtools.errors import UserError
from rmtools.particles.islands import t_quantile
from rmtools.particles.until import Until
from rmtools.sampling.algorithms import draw_batch
from rmtools.sampling.errors import until_known
from rmtools.sampling.report import report
from rmtools.sampling.sample_prompts import sample_prompts, settings_for, usual_block
from rmtools.sampling.samples import SampledPrompt, Samples

TREE = random_tree(4, 2, 0.8, Tilt(0.05), np.random.default_rng(0))


def rng(seed=0):
    return np.random.default_rng(seed)


def first_step(prompt, steps):
    return steps[0].strip()[-1] if steps else None


def printed(tmp_path, records):
    file = tmp_path / "s.jsonl"
    file.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records))
    text = report(file)
    assert all(len(line) <= 80 for line in text.splitlines()[1:]), text
    assert "not the chance of being right" in text
    return text


def drawn(policy, value, prompts, seed=5, answer=first_step, **given):
    return list(
        sample_prompts(policy, value, prompts, settings_for("smc", **given), rng(seed), answer=answer)
    )


def test_a_record_says_why_it_stopped(policy, value, prompts, tmp_path):
    records = drawn(policy, value, prompts[:3], n_particles=8, until="share=.1")
    assert records[0]["sampler"]["until"] == {"figure": "share", "target": 0.1}
    for record in records:
        until, islands = record["until"], record["islands"]
        lead = next(row for row in record["shares"] if row["answer"] is not None)
        assert islands["count"] == until["islands"] == len(record["runs"]) >= 8
        assert islands["n_particles"] == 8
        assert until["stopped"] == "share known"
        assert until["error"] <= 0.1
        assert until["error"] == pytest.approx(lead["se"] * t_quantile(islands["count"]) / 1.959963984540054)
        assert until["tokens"] == record["generated_tokens"]
        assert until["best_of_n"] >= 1
        assert not until["exceeded"]
        assert record["budget"] is None
        assert SampledPrompt(record).stopped == "share known"
    text = printed(tmp_path, records)
    assert "until the leading answer's share is known to ± 0.1: islands of 8, 8 at first" in text
    assert "share known at 3 of 3 prompts" in text
    assert "as 128 islands take" in " ".join(text.split())
    assert "best-of-N, prompt by prompt, for the same ±: N" in text
    assert "share known at 3" in str(Samples(tuple(map(SampledPrompt, records))))
    again = drawn(policy, value, prompts[:3], n_particles=8, until=Until("share", 0.1))
    for one, other in zip(records, again, strict=True):
        one["cost"]["seconds"] = other["cost"]["seconds"] = 0
        assert one == other


def test_an_error_that_the_budget_cannot_reach(policy, value, prompts, tmp_path):
    """What was reached is said, and which budget may do."""
    (record,) = drawn(policy, value, prompts[:1], n_particles=4, until="share=.001", token_budget=400)
    until = record["until"]
    assert until["stopped"] == "token budget"
    assert until["token_budget"] == 400 >= until["tokens"] > 200
    text = printed(tmp_path, [record])
    assert "token budget at 1 of 1 prompt\n" in text
    assert f"reached ± {until['error']:.3g}; token_budget=" in text
    assert "within 400 tokens" in text


def test_answers_that_all_differ(policy, value, prompts, tmp_path):
    numbers = iter(range(10_000))
    (record,) = drawn(
        policy,
        value,
        prompts[:1],
        n_particles=2,
        until="share=.1",
        token_budget=200,
        answer=lambda p, s: str(next(numbers)),
    )
    assert record["until"]["stopped"] == "token budget"
    assert record["until"]["error"] is record["until"]["best_of_n"] is None
    assert "not resolved at 1 of them: fewer than 3 islands with Z-hat > 0" in printed(tmp_path, [record])


@pytest.mark.parametrize(("p", "stopped"), [(0.5, "Z known"), (0.0, "token budget")])
def test_estimates_of_zero(on_finite_model, p, stopped):
    """In some islands: counted; in all: nothing is known, and the run ends at its budget."""
    model = FiniteModel(
        [[[p, 1 - p]], [[0.5, 0.5]] * 2], [[0.0], [0.0, -np.inf], [0.0, 0.0, -np.inf, -np.inf]]
    )
    settings = settings_for("smc", n_particles=2, until="cv=.3")
    (found,) = draw_batch(on_finite_model(model), ["a"], settings, rng(1))
    said = until_known(found, settings.until, None)
    assert said.stopped == stopped
    assert said.islands == len(found.runs) == (128 if p == 0 else said.islands)
    assert (said.error is None) == (p == 0)
    assert (found.draw is None) == (p == 0)
    assert not p or min(found.island_log_z) == -np.inf


def test_easy_and_hard_prompts_run_together(on_finite_model):
    """The dead prompt goes to its budget, the others stop; a chain of proposals has islands, too."""
    calls = []
    source = on_finite_model(TREE, dies=("dead",))
    start = source.start

    def counting(policy, value, prompts, **more):
        calls.append(list(prompts))
        return start(policy, value, prompts, **more)

    object.__setattr__(source, "start", counting)
    settings = settings_for("smc", n_particles=16, until="logz=.2", max_tokens=1000)
    live, dead = draw_batch(source, ["live", "dead"], settings, rng(2))
    assert calls[0] == ["live"] * 8 + ["dead"] * 8
    assert live.stop.stopped == "log Z known"
    assert (dead.stop.stopped, dead.log_z) == ("token budget", -np.inf)
    assert dead.tokens <= 1000
    assert calls[-1] == ["dead"] * len(calls[-1])
    settings = settings_for("mh", n_particles=4, pool_size=2, until="logz=.2")
    (chain,) = draw_batch(on_finite_model(TREE), ["a"], settings, rng(2))
    assert chain.stop.stopped == "log Z known"
    assert len(chain.accepted) == chain.stop.islands - 1


@pytest.mark.parametrize(
    ("algorithm", "given", "words"),
    [
        ("smc", {"islands": 4}, "contradicts `islands` 4.*leave `islands` out"),
        ("smc", {"islands": 1}, "contradicts `islands` 1"),
        ("smc", {"max_seconds": 3.0}, "contradicts `max_seconds` 3.0.*pass `max_tokens`"),
        ("gibbs", {}, "contradicts `sweeps` 8: .*not independent"),
        ("gibbs", {"sweeps": 4}, "contradicts `sweeps` 4"),
        ("beam", {}, "contradicts `resampling` top_k: .*no law"),
        ("mh", {"mh_steps": 4}, "`mh_steps` contradicts `until`, which says how many"),
        ("smc", {"max_tokens": 100}, "too few for 8 islands, the fewest: .*128 tokens"),
        ("smc", {"max_tokens": 1000, "token_budget": 1000}, "two names of one budget"),
        ("smc", {"until": "foo=.1"}, "`until` is 'foo=.1'"),
    ],
)
def test_contradictions_are_refused(algorithm, given, words):
    with pytest.raises(UserError, match=words):
        settings_for(algorithm, **{"until": "share=.05", **given})


def test_other_refusals(policy, value, prompts):
    with pytest.raises(UserError, match=r"--accuracy contradicts `until` cv=.25: it chooses N"):
        requested(None, {"until": "cv=.25", "terminal": "verifier"}, "tv=.05", None)
    with pytest.raises(UserError, match=r"`until` share=0.05 needs the leading answer.*`until` cv=.25"):
        drawn(policy, value, prompts[:1], answer=None, until="share=.05")
    assert settings_for("smc", n_particles=256, until="cv=.25").islands == 1
    assert settings_for("smc", n_particles=4, token_budget=900).max_tokens == 900
    assert usual_block(settings_for("smc", until="cv=.25")) == 16
