"""The recipe that trains a policy: which tasks it takes, and what its gate asks."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from checks import check_error

from rmtools.lm.policy import load_policy
from rmtools.lm.steps import StepSettings

RECIPE = Path(__file__).parents[2] / "recipes" / "train_policy.py"
TINY = ("--horizon", 3, "--iterations", 2, "--batch", 4, "--hidden", 16, "--gate-samples", 8)


@pytest.mark.parametrize("task", ["crossing", "arithmetic-silent"])
def test_an_untrained_policy_does_not_pass(run, tmp_path, task):
    result = run("--task", task, "--out", tmp_path / "policy", *TINY, script=RECIPE)
    assert result.code == 1, result.err
    assert f"gate NOT passed (task {task}: well-formed >= .98" in result.out
    assert ("success in [.03, .10]" in result.out) == (task == "crossing")
    gate = json.loads((tmp_path / "policy" / "gate.json").read_text())
    assert set(gate) == {"seed", "attempts", "well_formed", "right_row", "samples", "success"}
    assert (gate["seed"], gate["attempts"]) == (0, 1)
    load_policy(tmp_path / "policy", StepSettings("\n", 3))


def test_tasks_without_demonstrations(run, tmp_path):
    result = run("--task", "gsm8k", "--out", tmp_path / "policy", script=RECIPE)
    check_error(result, "'gsm8k' is no task with an exact check", "crossing-silent")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--seed", -1), "seed"),
        (("--seed", 2**32), "seed"),
        (("--learning-rate", "nan"), "--learning-rate"),
        (("--learning-rate", -1), "--learning-rate"),
        (("--initializer-range", -1), "--initializer-range"),
        (("--rope-theta", 0), "--rope-theta"),
        (("--iterations", 0), "--iterations"),
        (("--care", 1.5), "--care"),
        (("--early-care", -0.1), "--early-care"),
        (("--gate-samples", -1), "--gate-samples"),
        (("--attempts", 0), "--attempts"),
        (("--attempts", 2, "--seed", 2**32 - 1), "seed"),
        (("--attempts", 2, "--gate-samples", 0), "several attempts need a gate"),
        (("--hidden", 20), "not a multiple of 8"),
    ],
)
def test_wrong_options_write_nothing(run, tmp_path, options, fact):
    check_error(run("--out", tmp_path / "policy", *TINY, *options, script=RECIPE), fact)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_policy_is_replaced_on_request_only(run, tmp_path):
    out = tmp_path / "policy"
    out.mkdir()
    (out / "config.json").write_text("somebody's model")
    for extra in ((), ("--overwrite",)):
        check_error(run("--out", out, *TINY, *extra, script=RECIPE), "holds something else")
    (out / "config.json").unlink()
    assert run("--out", out, *TINY, script=RECIPE).code == 1
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    check_error(run("--out", out, *TINY, "--seed", 4, script=RECIPE), "holds a policy already", "--overwrite")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert run("--out", out, *TINY, "--seed", 4, "--overwrite", script=RECIPE).code == 1
    assert json.loads((out / "gate.json").read_text())["seed"] == 4


@pytest.fixture
def recipe(monkeypatch):
    """The recipe as a module; ``recipe(success)`` trains nothing and measures ``success[seed]``."""
    spec = importlib.util.spec_from_file_location("train_policy", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def with_gates(success):
        def train(args, task, folder, seed):
            folder.mkdir()
            (folder / f"weights-{seed}").touch()

        def gate(task, folder, samples, seed):
            return {"well_formed": 0.99, "right_row": 0.995, "samples": samples, "success": success[seed]}

        monkeypatch.setattr(module, "train", train)
        monkeypatch.setattr(module, "gate", gate)
        return module

    return with_gates


@pytest.mark.parametrize(
    ("attempts", "code", "seed", "tried"), [(4, 0, 7, 3), (3, 0, 7, 3), (2, 1, 6, 2), (1, 1, 5, 1)]
)
def test_seeds_are_tried_until_one_passes(recipe, tmp_path, monkeypatch, capsys, attempts, code, seed, tried):
    module = recipe({5: 0.0298, 6: 0.3, 7: 0.085, 8: 0.05})
    out = tmp_path / "policy"
    command = ["train_policy.py", "--out", out, "--seed", 5, "--attempts", attempts]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    assert module.main() == code
    gate = json.loads((out / "gate.json").read_text())
    assert (gate["seed"], gate["attempts"]) == (seed, tried)
    assert [p.name for p in out.glob("weights-*")] == [f"weights-{seed}"]
    printed = capsys.readouterr().out
    assert printed.count(": gate ") == tried
    assert f"attempt 1 of {attempts}, seed 5: gate NOT passed: well_formed 0.99" in printed
    assert (f"attempt 3 of {attempts}, seed 7: gate passed" in printed) == (code == 0)


def test_only_the_quick_start_has_limits_beyond_the_format(recipe):
    passes = recipe({}).passes
    good = {"well_formed": 0.99, "right_row": 0.995, "success": 0.05}
    for task in ("crossing", "crossing-silent", "arithmetic", "arithmetic-silent"):
        assert passes(good, task)
        assert not passes({**good, "well_formed": 0.97}, task)
        for worse in ({"right_row": 0.98}, {"success": 0.2}, {"success": 0.0}):
            assert passes({**good, **worse}, task) == (task != "crossing")
