"""The errors that records hold and the report prints: islands, chains and sweeps; what is said where there is none."""

import json

import numpy as np
import pytest

from rmtools.cli.errors import with_flags
from rmtools.cli.sample_run import REPORTED, requested
from rmtools.core import FiniteModel, Tilt, metropolis, particle_gibbs, random_tree, smc
from rmtools.errors import UserError
from rmtools.particles.islands import effective_number, log_z_error
from rmtools.particles.protocol import only_looks
from rmtools.sampling.algorithms import draw_batch
from rmtools.sampling.error_report import errors, fold, of_prompt
from rmtools.sampling.errors import answer_shares, genealogy_error, island_error, shares_of
from rmtools.sampling.report import report
from rmtools.sampling.sample_prompts import SamplerSettings, sample_prompts, settings_for
from rmtools.sampling.samples import SampledPrompt

TREE = random_tree(4, 2, 0.8, Tilt(0.05), np.random.default_rng(0))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("settings", [{"islands": 4}, {"resampling": "multinomial", "ess_threshold": 0.9}])
def test_shares_of_answers_are_those_of_the_result(settings):
    result = smc(TREE.particles(1), 32, rng=rng(3), **settings)
    text = [None if s == 0 else str(s % 3) for s in result.particles.state[0]]
    tree = None if "islands" in settings else result.genealogy()
    rows = answer_shares(text, result.log_weights[0], result.island_log_z[0], tree)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.share for row in rows] == sorted((row.share for row in rows), reverse=True)
    assert len(rows) > 2
    assert None in {row.answer for row in rows}
    for row in rows:
        phi = np.array([[t == row.answer for t in text]])
        share = result.share(phi)
        se = share.se if tree is None else tree.share_se(phi)
        np.testing.assert_allclose(
            np.array([row.share, row.se, row.low, row.high], dtype=float),
            [share.estimate[0], se[0], share.low[0], share.high[0]],
            rtol=1e-10,
        )


def test_proposals_and_repeated_runs_are_islands(on_finite_model):
    """Three proposals or budgeted runs of two islands each: six islands of three particles, in order."""
    source = on_finite_model(TREE)
    for given in ({"mh_steps": 2}, {"max_tokens": 100}):
        settings = SamplerSettings(6, islands=2, **given)
        (drawn,) = draw_batch(source, ["a"], settings, rng(1))
        found = island_error(drawn)
        each = np.array([z for run in drawn.runs for z in run.by_island.log_z[0]])
        assert found.count == len(each) == 2 * len(drawn.runs) >= 6
        assert found.n_particles == 3
        assert found.log_z_se == log_z_error(each[None])[0]
        assert found.effective == effective_number(each[None])[0]
        assert drawn.log_z == pytest.approx(np.log(np.exp(each).mean()))
        mass = np.exp(drawn.log_weight).reshape(len(each), 3).sum(axis=1)
        np.testing.assert_allclose(mass, np.exp(each) / np.exp(each).sum())
        assert [*map(len, (found.resampled, found.steps))] == [len(each)] * 2
        assert genealogy_error(drawn) is None
    assert SamplerSettings(128, mh_steps=2).islands == 1
    assert SamplerSettings(128).islands == 4


def test_estimates_of_a_chain_are_pooled():
    chains = metropolis(lambda r: smc(TREE.particles(50), 4, rng=r), 5, rng())
    assert chains.estimates.shape == (50, 6)
    np.testing.assert_allclose(np.exp(chains.pooled_log_z), np.exp(chains.estimates).mean(axis=1))
    np.testing.assert_array_equal(chains.pooled_log_z_se, log_z_error(chains.estimates))


def test_sweeps_in_batches_against_batch_means():
    """47 sweeps: twenty batches of two, the first seven left out; 19 sweeps: no error."""
    result = particle_gibbs(TREE.particles(6), 3, 47, rng=rng())
    phi = np.stack([d.state[:, 0] < 5 for d in result.draws], axis=1)
    share = result.share(lambda draw: draw.state < 5)
    means = phi[:, 7:].reshape(6, 20, 2).mean(axis=2)
    np.testing.assert_allclose(share.estimate, means.mean(axis=1))
    resolved = (means > 0).sum(axis=1) >= 2
    assert resolved.any()
    np.testing.assert_allclose(share.se[resolved], (means.std(axis=1, ddof=1) / np.sqrt(20))[resolved])
    assert (share.low[resolved] <= share.estimate[resolved]).all()
    short = particle_gibbs(TREE.particles(6), 3, 19, rng=rng()).share(lambda draw: draw.state < 5)
    assert np.isnan(short.low).all()
    assert not np.isnan(short.estimate).any()


def test_sweeps_of_a_record(on_finite_model):
    for sweeps, resolved in ((40, True), (19, False)):
        (drawn,) = draw_batch(
            on_finite_model(TREE), ["a"], settings_for("gibbs", n_particles=3, sweeps=sweeps), rng(2)
        )
        assert island_error(drawn) is None
        rows = shares_of(drawn, [f"{i % 2}" for i in range(sweeps)])
        assert {row.answer for row in rows} == {"0", "1"}
        assert all((row.low is not None) == resolved for row in rows)
    assert shares_of(drawn, None) is None


def dying(p):
    """A model whose runs of one particle die with probability 1 - p at the first step."""
    return FiniteModel(
        [[[p, 1 - p]], [[0.5, 0.5]] * 2],
        [[0.0], [0.0, -np.inf], [np.log(2), 0.0, -np.inf, -np.inf]],
    )


@pytest.mark.parametrize(("p", "islands"), [(0.5, 8), (0.0001, 8)])
def test_islands_of_estimate_zero(on_finite_model, p, islands):
    """Some: counted, their particles weigh nothing; all: no log Z, no error, no share."""
    (drawn,) = draw_batch(on_finite_model(dying(p)), ["a"], SamplerSettings(islands, islands=islands), rng(1))
    found, rows = island_error(drawn), shares_of(drawn, ["x"] * islands)
    alive = sum(z > -np.inf for z in found.log_z)
    assert found.count == islands
    if p == 0.5:
        assert 3 <= alive < islands
        assert found.log_z_se is not None
        assert rows[0].low is not None
    else:
        assert (alive, found.effective, found.log_z_se, rows, drawn.draw) == (0, 0, None, [], None)


KINDS = [
    settings_for("smc", n_particles=4),
    settings_for("smc", n_particles=12, islands=4),
    settings_for("smc", n_particles=12, islands=2),
    settings_for("smc", n_particles=9, resampling="multinomial"),
    settings_for("guided"),
    settings_for("best-of-n", n_particles=12, islands=4),
    settings_for("mh", pool_size=3),
    settings_for("gibbs", n_particles=3, sweeps=20),
    settings_for("gibbs", n_particles=3, sweeps=2),
    settings_for("beam"),
    settings_for("sp-gsmc", pool_size=3),
    settings_for("smc", n_particles=4, max_tokens=200),
]


@pytest.mark.parametrize(
    "wanted", KINDS, ids=lambda s: f"{s.algorithm}-{s.n_particles}-{s.islands}-{s.sweeps}"
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_report_says_the_error_or_how_to_get_one(
    policy, value, prompts, task, wanted, count, tmp_path, monkeypatch
):
    if wanted.sweeps == 20 and count > 1:
        pytest.skip("slow, and the same as for one prompt")
    monkeypatch.chdir(tmp_path)
    drawn = sample_prompts(
        policy, value, prompts[:count], wanted, rng(5), task.reward, answer=lambda p, s: s[0] if s else None
    )
    records = [json.loads(json.dumps(record, allow_nan=False)) for record in drawn]
    file = tmp_path / "s.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = report(file.relative_to(tmp_path), typed=True)
    assert max(map(len, text.splitlines())) <= 80, text
    assert ("not the chance of being right" in text) == ("±" in text)
    resolved = any((r["islands"] or {}).get("log_z_se") for r in records)
    resolved |= any((r["genealogy"] or {}).get("log_z_se") for r in records)
    resolved |= any(s["se"] is not None for r in records for s in r["shares"] or [])
    assert ("±" in text) == resolved
    assert ("no error" in text) == (not resolved and wanted.algorithm != "beam")
    assert (
        (wanted.islands == 1) == ("particles, effective number" not in text)
        or wanted.chain
        or wanted.budgeted
    )
    if wanted.resampling == "multinomial" and not wanted.sweeps:
        assert "surviving families" in text
    assert "tokens of the policy, " in text
    assert "FLOPs, " in text
    for record in records:
        item = SampledPrompt(record)
        assert (item.log_z_se is None) == (" ± " not in str(item))
        assert (record["shares"] is None) == (wanted.algorithm == "beam")


def test_what_would_give_an_error(policy, value, prompts, tmp_path):
    def said(settings, answer=None):
        records = list(sample_prompts(policy, value, prompts[:1], settings, rng(), answer=answer))
        (tmp_path / "s.jsonl").write_text(json.dumps(records[0]) + "\n")
        return report(tmp_path / "s.jsonl")

    assert "no error from a single run: n_particles=128 islands=4 gives one" in said(SamplerSettings(16))
    assert "no error from two islands: n_particles=128 islands=4 gives one" in said(
        SamplerSettings(4, islands=2)
    )
    assert "n_particles=132 islands=4 gives one" in said(SamplerSettings(130))
    assert "mh_steps=8 gives one" in said(settings_for("sp-gsmc", pool_size=2))
    assert "sweeps=20 gives one" in said(settings_for("gibbs", n_particles=2, sweeps=1))
    # The command line names its flags; what a solution says is left alone.
    in_flags = report(tmp_path / "s.jsonl", typed=True, wording=lambda line: with_flags(line, REPORTED))
    assert "--sweeps 20 gives one" in in_flags
    assert "no shares: the task does not say what an answer is" in said(SamplerSettings(64, islands=16))
    numbers = iter(range(100))
    apart = said(SamplerSettings(64, islands=16), lambda p, s: str(next(numbers)))
    assert "no share: no answer occurs on two islands" in apart


def record_of(share=None, values=(-1.0, -2.0), answer="4"):
    """A record of four islands of one solution each, as far as the errors are read."""
    rows = [] if share is None else [{"answer": answer, **share}]
    return {
        "prompt": "1 + 1 = \n",
        "sampler": {"resampling": "systematic", "n_particles": 4, "sweeps": 0},
        "log_z": -4.6,
        "islands": {
            "count": 4,
            "n_particles": 1,
            "effective": 4.0,
            "log_z_se": 0.001,
            "log_z_interval": [-4.61, -4.59],
        },
        "genealogy": None,
        "shares": rows,
        "samples": [{"log_value": v, "log_weight": -1.4} for v in values],
    }


def test_islands_that_agree_are_no_proof():
    """The share's error is then that of its interval, and Z's is said to be blind for solutions that were not seen."""
    agreed = {"share": 1.0, "se": 0.0, "low": 0.4, "high": 1.0}
    for records in ([record_of(agreed)], [record_of(agreed)] * 2):
        line = next(x for x in errors(records) if "leading answer" in x)
        assert f"1.00 ± {0.3 / 1.959964:.2f}" in line
    assert "1.00 ± 0.15 [0.40, 1.00]  4" in of_prompt(record_of(agreed))[1]
    lines = errors([record_of(agreed, answer=None), record_of(agreed)])
    assert "    no solution has an answer at 1 prompt: their share is 1" in lines
    low = record_of(agreed, (-4.6, -4.59, -4.605))
    (said,) = (x for x in errors([low, record_of(agreed)]) if "a rare better one" in x)
    assert said.startswith("  all solutions of 1 prompt are worth the same, V < 0.1")
    for values in ((-1.0, -1.01), (-4.6, -3.0)):  # high values; values that differ
        assert not any("a rare better one" in x for x in errors([record_of(agreed, values)]))
    unresolved = record_of(agreed, (-4.6, -4.6))
    unresolved["islands"]["log_z_se"] = None
    assert not any("a rare better one" in x for x in errors([unresolved]))


def test_tokens_of_the_value_model_are_those_of_distinct_prefixes(policy, value, prompts, task):
    """Counted again from the texts: every distinct step of every prompt once; with the verifier, ended ones are not read."""
    for terminal in ("model", "verifier"):
        read = np.zeros(2)

        @only_looks
        def observe(step, terminal=terminal, read=read):
            for g, (texts, parents) in enumerate(
                zip(step.children.steps(), step.parents.steps(), strict=True)
            ):
                m = len(texts) // len(parents)
                new = {
                    tuple(t): t[-1]
                    for i, t in enumerate(texts)
                    if len(t) > len(parents[i // m])
                    and (terminal == "model" or not step.children.ended[g, i])
                }
                read[g] += sum(len(policy.steps.step_ids(last)) for last in new.values())

        settings = SamplerSettings(12, 2, islands=3, terminal=terminal)
        records = list(
            sample_prompts(policy, value, prompts[:2], settings, rng(3), task.reward, observe=observe)
        )
        assert [r["cost"]["value_tokens"] for r in records] == read.tolist()
        for prompt, record in zip(prompts, records, strict=False):
            cost, ids = record["cost"], len(policy.steps.prompt_ids(prompt))
            sizes = [sum(p.numel() for p in m.model.parameters()) for m in (policy, value)]
            tokens = (ids + record["generated_tokens"], ids + cost["value_tokens"])
            assert cost["flops"] == 2 * sum(w * n for w, n in zip(sizes, tokens, strict=True))
            assert (cost["prompt_tokens"], cost["policy_tokens"]) == (ids, record["generated_tokens"])
    twice = list(sample_prompts(policy, value, [prompts[0]] * 2, SamplerSettings(6), rng(3)))
    assert twice[0]["cost"]["value_tokens"] == twice[1]["cost"]["value_tokens"]


def test_algorithms_without_islands_are_refused():
    for algorithm, said in (("gibbs", "batches of sweeps"), ("beam", "keeping the best follows no law")):
        with pytest.raises(UserError, match=f"`islands` 2 do not go with.*{said}"):
            settings_for(algorithm, n_particles=4, islands=2)
    with pytest.raises(UserError, match=r"sp-gsmc does not go with `islands` 4: its single particle is one"):
        settings_for("sp-gsmc", islands=4)
    assert settings_for("sp-gsmc", islands=1).islands == 1
    with pytest.raises(UserError, match=r"`islands` 3 do not divide `n_particles` 16.*`n_particles` 15"):
        settings_for("smc", islands=3)
    assert settings_for("gibbs", n_particles=256).islands == 1
    given = {"islands": 4, "terminal": "verifier"}
    with pytest.raises(UserError, match="--accuracy contradicts `islands` 4"):
        requested(None, given, "tv=.05", None)
    assert requested(None, {"terminal": "verifier"}, "tv=.05", None)[0].islands == 1


def test_lines_are_folded_at_80_characters():
    line = "  budget: " + "word " * 40
    assert max(map(len, fold(line).splitlines())) <= 80
    assert all(x.startswith("    word") for x in fold(line).splitlines()[1:])
    assert fold("/a/path/" + "x" * 90) == "/a/path/" + "x" * 90


def test_records_of_the_first_release_print(tmp_path):
    """They hold no errors and no cost."""
    sampler = {
        "algorithm": "smc",
        "n_particles": 2,
        "pool_size": 1,
        "resampling": "systematic",
        "ess_threshold": 0.5,
    }
    sampler |= {"mh_steps": 0, "sweeps": 0, "max_tokens": None, "max_seconds": None}
    samples = [{"steps": ["a"], "log_weight": 0.0, "log_value": 0.0}]
    record = {
        "terminal": "model",
        "estimates": "E",
        "sampler": sampler,
        "prompt": "p",
        "log_z": 0.0,
        "runs": None,
    }
    record |= {
        "samples": samples,
        "chosen": 0,
        "output": "draw",
        "cut_steps": 0,
        "n_steps": 1,
        "budget": None,
    }
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps({**record, "generated_tokens": 7.0}) + "\n")
    assert "7 tokens generated" in report(file, typed=True)
