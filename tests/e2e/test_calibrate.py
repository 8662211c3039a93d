"""``rmtools calibrate``: the map is applied wherever its folder is named, and what cannot be calibrated is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from checks import check_error, check_late

import rmtools as rm
from rmtools.data.load import load_rollouts
from rmtools.evaluation.step_scores import score_steps
from rmtools.lm.calibrated import CalibratedValue
from rmtools.lm.checkpoint import fingerprint, load_value_model, weights_fingerprint
from rmtools.stats.monotone_map import MonotoneMap


@pytest.fixture(scope="module")
def rollouts(drawn_rollouts):
    return drawn_rollouts / "rollouts"


def with_map(folder, **changes):
    """Change the map of a calibrated folder."""
    file = folder / "calibration.json"
    found = json.loads(file.read_text())
    found["fitted"]["map"] |= changes
    file.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def platt(tmp_path_factory, command, value_folder, rollouts):
    """The checkpoint with a Platt scaling of its p."""
    out = tmp_path_factory.mktemp("calibrated") / "prm"
    words = ("--model", value_folder, "--rollouts", rollouts, "--form", "platt", "--by-depth", "none")
    assert command(("calibrate", *words, "--out", out)) == 0
    with_map(out, slopes=[[0.6]], intercepts=[-0.4])
    return out


@pytest.fixture
def by_depth(platt, tmp_path):
    """The same with another map at each depth."""
    out = tmp_path / "by-depth"
    shutil.copytree(platt, out)
    with_map(out, slopes=[[0.5], [1.5], [0.2], [2.0]], intercepts=[0.3, -1.0, 0.5, 0.0])
    return out


def step_p(folder, rows):
    return score_steps(list(rows), load_value_model(folder)[0]).p


def expected(folder, raw, rows):
    """p of a model after the map in ``folder``, computed by hand."""
    found = MonotoneMap(
        **{
            name: tuple(map(tuple, v)) if name == "slopes" else tuple(v)
            for name, v in json.loads((folder / "calibration.json").read_text())["fitted"]["map"].items()
        }
    )
    return [np.exp(found(np.log(p), np.arange(len(p)))) for p in raw]


def test_the_map_is_applied_to_whole_trajectories(platt, by_depth, value_folder, rollouts):
    rows = load_rollouts(rollouts)
    raw = step_p(value_folder, rows)
    for folder in (platt, by_depth):
        for own, p in zip(expected(folder, raw, rows), step_p(folder, rows), strict=True):
            np.testing.assert_allclose(p, own, rtol=1e-4)


def test_step_by_step_is_the_same(by_depth, policy, rollouts):
    """As the sampler reads: prefixes selected, repeated, joined, and a row without a new step."""
    rows = load_rollouts(rollouts)[:4]
    value, _ = load_value_model(by_depth)
    whole = [value.tilt.log_potential(p) for p in score_steps(list(rows), value).p]
    start, state = value.start([value.steps.prompt_ids(r.prompt) for r in rows])
    np.testing.assert_allclose(start, [v[0] for v in whole], rtol=1e-4)
    order = torch.tensor([3, 1, 1, 0, 2])
    state = state.select(order[:3]).join(state.select(order[3:]))
    for t in range(3):
        steps = [value.steps.step_ids(rows[i].steps[t]) for i in order.tolist()]
        if t == 1:
            steps[1] = []
        tokens = torch.full((5, max(map(len, steps))), -1)
        for k, ids in enumerate(steps):
            tokens[k, : len(ids)] = torch.tensor(ids)
        found, state = value.advance(state, tokens)
        kept = [k for k in range(5) if k != 1 or t == 0]
        np.testing.assert_allclose(found[kept], [whole[order[k]][t + 1] for k in kept], rtol=1e-4)
        assert bool(found[1].isnan()) == (t == 1)


def test_the_contract_of_a_scorer(by_depth, rollouts):
    from rmtools.testing.scorer import check_scorer

    value, _ = load_value_model(by_depth)
    check_scorer(value, load_rollouts(rollouts).rows[:4])


def test_the_audit_shows_before_and_after(run, by_depth, value_folder, rollouts):
    found = run("audit", "--model", by_depth, "--rollouts", rollouts, "--no-pilot", "--device", "cpu")
    assert found.code == 0, found.err
    assert "before the map" in found.out
    assert "3 of 3 prompts are among those that the map of p was fitted on" in found.out.replace("\n  ", " ")
    report = json.loads((by_depth / "audit" / "audit.json").read_text())
    assert [m["role"] for m in report["models"]][:2] == ["model", "uncalibrated"]
    bare = rm.audit(str(rollouts), value_folder, controls=False)
    after, before = rm.audit(str(rollouts), by_depth, controls=False).models
    for path in (lambda m: m.error.sampled.plug_in.rms, lambda m: m.calibration.prefixes.brier):
        assert path(before).estimate == pytest.approx(path(bare.model).estimate, rel=1e-4)
        assert path(after).estimate != pytest.approx(path(before).estimate, rel=1e-2)


def test_before_the_map_needs_no_second_pass(by_depth, rollouts, monkeypatch):
    from rmtools.lm.value import ValueModel

    passes, score = [], ValueModel.score
    monkeypatch.setattr(ValueModel, "score", lambda self, *a, **k: passes.append(1) or score(self, *a, **k))
    rm.audit(str(rollouts), by_depth, controls=False)
    assert len(passes) == 1


def test_a_model_without_a_map_is_audited_as_before(run, checkpoint, rollouts):
    found = run("audit", "--model", checkpoint, "--rollouts", rollouts, "--no-pilot", "--device", "cpu")
    assert "the map" not in found.out
    assert "calibrat" not in found.out.replace("calibration  ", "")


def test_it_is_sampled_and_evaluated(run, by_depth, rollouts, prompts_file, tmp_path):
    out = tmp_path / "samples.jsonl"
    words = ("--prompts", prompts_file, "-n", 4, "--out", out, "--terminal", "model")
    assert run("sample", "--model", by_depth, *words).code == 0
    words = ("--model", by_depth, "--out", tmp_path / "evaluated")
    assert run("evaluate", "calibration", rollouts, *words).code == 0
    assert rm.sample(by_depth, rm.load_prompts(prompts_file)[:1], n_particles=2)[
        0
    ].weights.sum() == pytest.approx(1)


def test_a_platt_scaling_is_exported_into_the_head(run, platt, rollouts, tmp_path):
    out = tmp_path / "merged"
    assert run("export", "--model", platt, "--merge", "--out", out).code == 0
    assert not (out / "calibration.json").exists()
    assert json.loads((out / "export.json").read_text())["platt_scaling"] == {"slope": 0.6, "intercept": -0.4}
    rows = load_rollouts(rollouts)
    for whole, mapped in zip(step_p(out, rows), step_p(platt, rows), strict=True):
        np.testing.assert_allclose(whole, mapped, rtol=1e-4)


def test_another_map_is_not_exported(run, by_depth, tmp_path):
    found = run("export", "--model", by_depth, "--merge", "--out", tmp_path / "merged")
    check_error(found, "differs between depths", "--form platt and --by-depth none")
    assert not (tmp_path / "merged").exists()


def test_a_map_is_part_of_the_fingerprint(platt, by_depth, value_folder):
    assert len({fingerprint(m) for m in (platt, by_depth, value_folder)}) == 3
    assert len({weights_fingerprint(m) for m in (platt, by_depth, value_folder)}) == 1


def test_a_published_model_is_named_with_its_reading(run, rollouts, value_folder, tmp_path, policy_folder):
    """As trl writes one: a folder without rmtools.json."""
    own, out = tmp_path / "trl", tmp_path / "calibrated"
    assert run("export", "--model", value_folder, "--merge", "--out", own).code == 0
    (own / "rmtools.json").unlink()
    (own / "export.json").unlink()
    words = ("--prm-format", "trl", "--aggregate", "min", "--floor", 0.02)
    found = run("calibrate", "--model", own, "--rollouts", rollouts, *words, "--out", out)
    assert found.code == 0, found.err
    assert {f.name for f in out.iterdir()} == {"calibration.json"}
    with_map(out, slopes=[[0.6]], intercepts=[-0.4], knots=[])
    value, settings = load_value_model(out)
    assert isinstance(value, CalibratedValue)
    assert settings is None
    assert value.tilt.floor == 0.02
    assert value.reading.aggregate == "min"
    rows = load_rollouts(rollouts)
    read = [replace(r, prompt=r.question or r.prompt) for r in rows]
    bare, _ = load_value_model(own, prm_format="trl", aggregate="min", floor=0.02, steps=value.steps.settings)
    for raw, p in zip(score_steps(read, bare).p, score_steps(read, value).p, strict=True):
        own_p = np.exp(MonotoneMap((-0.4,), ((0.6,),))(np.log(raw[1:])))
        np.testing.assert_allclose(p[1:], own_p, rtol=1e-4)
    words = ("--model", out, "--rollouts", rollouts, "--no-pilot", "--out", tmp_path / "audit")
    found = run("audit", *words)
    assert found.code == 0, found.err
    assert "before the map" in found.out
    check_error(run("audit", *words, "--aggregate", "last", "--floor", 0.03), "calibrated as it was read")
    check_error(
        run("export", "--model", out, "--merge", "--out", tmp_path / "m"), "logit_mean", "logit_sigma"
    )
    own.rename(tmp_path / "moved")
    check_error(run("audit", *words), "is not there", "put the model back")


def test_what_is_tampered_with_is_refused(run, platt, rollouts, tmp_path):
    words = ("--rollouts", rollouts, "--no-pilot")
    folder = tmp_path / "copy"
    shutil.copytree(platt, folder)
    with_map(folder, slopes=[[-0.6]])
    check_error(run("audit", "--model", folder, *words), "not monotone", "rmtools calibrate")
    with_map(folder, slopes=[[None]])
    check_error(run("audit", "--model", folder, *words), "not finite")
    (folder / "calibration.json").write_text("{")
    check_error(run("audit", "--model", folder, *words), "calibration.json", "not valid JSON")
    (folder / "calibration.json").write_text('{"schema_version": 1, "model": "."}')
    check_error(run("audit", "--model", folder, *words), "lacks")
    shutil.copy(platt / "calibration.json", folder)
    weights = folder / "adapter_model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(whole)
    check_error(run("audit", "--model", folder, *words), "not those that the map", "put the old weights back")
    weights.unlink()
    assert run("audit", "--model", folder, *words).code == 2


def test_what_cannot_be_calibrated(run, value_folder, platt, rollouts, tmp_path):
    out = tmp_path / "out"

    def refused(*words, model=value_folder, given=rollouts, to=out):
        before = sorted(tmp_path.rglob("*"))
        found = run("calibrate", "--model", model, "--rollouts", given, "--out", to)
        check_late(found, *words)
        assert sorted(tmp_path.rglob("*")) == before

    refused("is the model itself", to=value_folder)
    refused("is calibrated already", model=platt)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    refused("holds something else", to=tmp_path / "full")
    rows = load_rollouts(rollouts)
    for name, words, change in (
        ("equal", "every outcome is 1", lambda r: replace(r, reward=1.0)),
        ("one", "one prompt", lambda r: r if r.prompt == rows[0].prompt else None),
        ("none", "reward", lambda r: replace(r, reward=None)),
        ("words", "vocabulary", lambda r: replace(r, prompt=r.prompt.replace(".", "other"))),
    ):
        file = tmp_path / f"{name}.jsonl"
        kept = [row for r in rows if (row := change(r)) is not None]
        lines = [
            {"prompt": r.prompt, "steps": r.steps, "reward": r.reward, "prompt_id": r.prompt_id} for r in kept
        ]
        file.write_text(
            "".join(json.dumps({k: v for k, v in x.items() if v is not None}) + "\n" for x in lines)
        )
        refused(words, given=file)


def test_nan_values_are_refused(run, value_folder, rollouts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rmtools.lm.value.log_value_from_logits", lambda logits, floor: logits[..., 1].float() * torch.nan
    )
    found = run("calibrate", "--model", value_folder, "--rollouts", rollouts, "--out", tmp_path / "out")
    check_late(found, "NaN")
    assert not (tmp_path / "out").exists()
