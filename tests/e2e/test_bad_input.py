"""What a user can get wrong is one line and exit code 2, with nothing half-written."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from checks import check_error, sample

from rmtools.data.rollouts import read_rollouts
from rmtools.data.tasks import Crossing
from rmtools.errors import UserError
from rmtools.files import replacing
from rmtools.training.trainer import PRMTrainer


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--colour", "red"],
        ["nonsense"],
        ["--nonsense"],
        ["rollout"],
        ["verify", "nonsense"],
        ["verify", "exact", "--workers", "0"],
        ["verify", "exact", "--seed", "-1"],
        ["sample", "--model", "x", "--prompts", "y", "-n", "many"],
        ["prompts", "-n", "3"],
        ["rollout", "--policy", "p", "--out", "o", "--horizon", "0"],
    ],
)
def test_wrong_usage(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    check_error(run(*arguments), "--help")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_is_none(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "no model can be loaded"), ("missing/policy", "there is no model at")):
        check_error(run("rollout", "--policy", tmp_path / name, "--out", tmp_path / "o"), words, name)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "r2 . \\nc13 . \\n"}\n{"prompt": \n', ["line 2", "not valid JSON"]),
        ("", ["is empty"]),
        ('{"text": "a"}\n', ["line 1", "prompt"]),
        (None, ["cannot be read"]),
        (json.dumps({"prompt": "r2 . \n" + "c13 . \n" * 40}) + "\n", ["123 tokens", "takes 64"]),
        ('{"prompt": "what is 2+2?"}\n', ["crossing"]),
        ('{"prompt": "r2 . \\nc13 . \\n"}\n', ["has 1 columns", "prompts with 3 columns"]),
        ('{"prompt": "r2 . c13 . c02 ."}\n', ["has no columns", "a column is one line"]),
    ],
)
def test_wrong_prompts_files(run, tmp_path, value_folder, policy_folder, text, words):
    path = tmp_path / "p.jsonl"
    if text is not None:
        path.write_text(text)
    check_error(sample(run, value_folder, path), *words)
    result = run(
        "rollout", "--policy", policy_folder, "--prompts", path, "--horizon", 3, "--out", tmp_path / "o"
    )
    check_error(result, *words)
    assert not list((tmp_path / "o").glob("*"))


def test_counts_below_one(run, tmp_path, value_folder, policy_folder, prompts_file):
    check_error(sample(run, value_folder, prompts_file, "-n", 0), "at least 1, got 0")
    check_error(sample(run, value_folder, prompts_file, "--pool-size", -1), "at least 1, got -1")
    check_error(
        run("prompts", "-n", 0, "--out", tmp_path / "x.jsonl"), "--count", "must be at least 1, got 0"
    )
    for option in ("trajectories", "children", "completions", "max-step-tokens"):
        result = run("rollout", "--policy", policy_folder, "--out", tmp_path / "o", f"--{option}", 0)
        check_error(result, f"--{option}", "must be at least 1, got 0")
    check_error(
        run("rollout", "--policy", policy_folder, "--out", tmp_path / "o", "--prompts", 0), "at least 1"
    )
    check_error(run("verify", "lm", "--model", value_folder, "--runs", 0, "--out", tmp_path / "o"), "--runs")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resampling", "lottery"], ["--resampling has no choice 'lottery'", "systematic"]),
        (["--ess-threshold", 32], ["[0, 1]"]),
        (["--terminal", "judge"], ["verifier, model"]),
        (["--task", "chess"], ["the tasks are: crossing"]),
    ],
)
def test_wrong_choices_of_the_sampler(run, value_folder, prompts_file, options, words):
    check_error(sample(run, value_folder, prompts_file, *options), *words)


def test_output_folders_that_hold_something_else(run, tmp_path, value_folder, policy_folder, prompts_file):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("a file")
    for out, word in ((other, "holds something else"), (file, "is a file")):
        check_error(
            run(
                "rollout", "--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--out", out
            ),
            word,
        )
        check_error(
            run("verify", "lm", "--model", value_folder, "--prompts", prompts_file, "--out", out), word
        )
    check_error(
        run("sample", "--model", value_folder, "--prompts", prompts_file, "--out", other), "is a folder"
    )
    assert [p.name for p in other.iterdir()] == ["chapter.tex"]
    assert file.read_text() == "a file"


# A full disk


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["write_text", "replace"])
def test_disk_full_while_sampling(run, tmp_path, value_folder, prompts_file, monkeypatch, broken):
    out = tmp_path / "samples.jsonl"
    out.write_text("old")
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(Path, broken, full)
    result = run(
        "sample", "--model", value_folder, "--prompts", prompts_file, "-n", 2, "--out", out, "--overwrite"
    )
    monkeypatch.undo()
    check_error(result, "No space left on device", "unchanged")
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_disk_full_while_writing_rollouts(run, tmp_path, policy_folder, prompts_file, monkeypatch, form):
    """Whatever no longer fits, plan, rows or metadata: what is there is whole, and the same command goes on."""
    options = ["rollout", "--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3]
    options += ["--trajectories", 2, "--shard-size", 1, "--format", form, "--out", tmp_path / "r"]
    replace = Path.replace
    for done in range(8):  # the plan, three shards with a tally each, the metadata

        def full_after(self, target, left=[done]):  # noqa: B006 - counts down
            left[0] -= 1
            return full() if left[0] < 0 else replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full_after)
            result = run(*options)
        check_error(result, "No space left on device")
        files = {p.name for p in (tmp_path / "r").rglob("*") if p.is_file()}
        assert len(files) == done
        assert files <= {"plan.json", *(f"{i:05d}.json" for i in range(3))} | {
            f"train-{i:05d}-of-00003.{form}" for i in range(3)
        }
        assert not (tmp_path / "r" / ".partial").exists()
        for path in tmp_path.glob("r/*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    import pyarrow.parquet

    for target, name in ((Path, "write_text"), (pyarrow.parquet, "write_table")):
        if form == "parquet" or name == "write_text":
            with monkeypatch.context() as patch:
                patch.setattr(target, name, full)
                check_error(run(*options), "No space left on device")
    assert run(*options).code == 0
    assert len(read_rollouts(tmp_path / "r")[0]) == 6


def test_a_folder_is_put_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):

    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / "a").write_text("old")
    replace = Path.replace

    def second_fails(self, target):
        if Path(target) == tmp_path / "prm" and self.name != "prm.old":
            full()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(UserError, match="No space left"), replacing(tmp_path / "prm") as temporary:
        temporary.mkdir()
    assert (tmp_path / "prm" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["prm"]


def test_another_horizon_than_the_checkpoints_is_refused(run, checkpoint, prompts_file, tmp_path):
    options = (
        "--model",
        checkpoint,
        "--horizon",
        2,
        "--prompts",
        prompts_file,
        "--out",
        tmp_path / "s.jsonl",
    )
    check_error(run("sample", *options), "2 steps", "--horizon")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_retrained_policy_under_an_adapter_is_refused(run, checkpoint, prompts_file, tmp_path):
    settings = json.loads((checkpoint / "rmtools.json").read_text())
    settings["base_fingerprint"] = "0" * 16
    (checkpoint / "rmtools.json").write_text(json.dumps(settings))
    options = ("--model", checkpoint, "--prompts", prompts_file, "--out", tmp_path / "s.jsonl")
    check_error(run("sample", *options), "weights differ", "policy", "adapter")


def test_verbs_draw_different_prompts_at_the_same_seed():
    from rmtools.seeds import generator

    task = Crossing(8)
    drawn = [
        set(task.prompts(20, generator(verb, 0))[0]) for verb in ("rollout", "audit", "prompts", "verify")
    ]
    assert len(set().union(*drawn)) == 80


def test_a_policy_without_tokenizer(run, tmp_path, policy_folder):
    shutil.copytree(policy_folder, tmp_path / "policy", ignore=shutil.ignore_patterns("*token*"))
    result = run("rollout", "--policy", tmp_path / "policy", "--out", tmp_path / "o")
    check_error(result, "has no tokenizer beside the model", "save_pretrained")


def test_two_options_that_say_how_long_a_step_is(run, tmp_path, policy_folder):
    options = ("--steps", "tokens=5", "--max-step-tokens", 9)
    result = run("rollout", "--policy", policy_folder, "--out", tmp_path / "o", *options)
    check_error(result, "--steps tokens=5", "--max-step-tokens 9", "pass one of them")
    assert not (tmp_path / "o").exists()


def test_a_policy_of_another_task(run, tmp_path, policy_folder):
    """Its vocabulary has no word for the prompts: every one would be the same to it."""
    result = run("rollout", "--policy", policy_folder, "--task", "arithmetic", "--out", tmp_path / "o")
    check_error(result, "does not know", "tokens of the prompt")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("given", "words"), [("", "is empty"), (r"\n\n", "end with '\\n'")])
def test_wrong_delimiters(run, tmp_path, policy_folder, given, words):
    result = run("rollout", "--policy", policy_folder, "--delimiter", given, "--out", tmp_path / "o")
    check_error(result, "--delimiter", words)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollout", "--policy", "POLICY", "--prompts", 0, "--out", "o"], ["at least 1, got 0"]),
        (["rollout", "--policy", "POLICY", "--prompts", "nope.jsonl", "--out", "o"], ["no such file"]),
        (["rollout", "--policy", "POLICY", "--out", "file/x"], ["cannot write file/x"]),
        (["sample", "--model", "MODEL", "--prompts", "nope.jsonl"], ["no such file"]),
        (["sample", "--model", "MODEL", "--prompts", "PROMPTS", "--out", "file/x.jsonl"], ["cannot write"]),
        (["verify", "lm", "--model", "MODEL", "--prompts", "nope.jsonl"], ["no such file"]),
        (["audit", "--model", "MODEL", "--prompts", 0, "--out", "o"], ["at least 1, got 0"]),
        (["audit", "--model", "MODEL", "--rollouts", "ROLLOUTS", "--out", "file/x"], ["cannot write file/x"]),
        (["train", "--train_rollouts", "ROLLOUTS", "--output_dir", "file/x"], ["cannot write file/x"]),
    ],
)
def test_what_is_seen_in_the_arguments_is_said_before_anything_is_loaded(
    run, tmp_path, monkeypatch, value_folder, policy_folder, prompts_file, drawn_rollouts, arguments, words
):
    def loads(*args, **kwargs):
        raise AssertionError("a model or rows were loaded")

    for name in ("lm.policy.load_policy", "sampling.loading.load", "data.load.load_rollouts"):
        monkeypatch.setattr(f"rmtools.{name}", loads)
    monkeypatch.setattr("rmtools.training.run.load_rollouts", loads)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    named = {
        "POLICY": policy_folder,
        "MODEL": value_folder,
        "PROMPTS": prompts_file,
        "ROLLOUTS": drawn_rollouts / "rollouts",
    }
    check_error(run(*(named.get(a, a) for a in arguments)), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", prompts_file.name]


def test_an_unknown_adapter_is_said_before_rows_are_read(policy_folder, tmp_path):
    with pytest.raises(UserError, match="peft_config"):
        PRMTrainer(policy_folder, train_dataset=tmp_path / "no rows here", peft_config="loar")
