"""The tasks on the command line."""

import json

import numpy as np
import pytest
from checks import check_error, check_late

from rmtools.data.rollouts import read_rollouts
from rmtools.data.tasks import custom, load_exact_task


@pytest.mark.parametrize("name", ["crossing", "crossing-silent", "arithmetic", "arithmetic-silent"])
def test_prompts_of_every_exact_task(run, tmp_path, name):
    result = run("prompts", "--task", name, "-n", 16, "--horizon", 4, "--out", tmp_path / "p.jsonl")
    assert result.code == 0, result.err
    task = load_exact_task(name, 4)
    rows = [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    for row in rows:
        task.check_prompt(row["prompt"])
    meta = json.loads((tmp_path / "p.meta.json").read_text())
    assert (meta["task"], meta["horizon"]) == (name, 4)


def test_tasks_without_prompts_of_their_own(run, tmp_path, policy_folder):
    for name in ("gsm8k", "math", "answers"):
        out = tmp_path / "p.jsonl"
        check_error(run("prompts", "--task", name, "-n", 4, "--out", out), name, "JSONL file of prompts")
    result = run("rollout", "--task", "gsm8k", "--policy", policy_folder, "--out", tmp_path / "o")
    check_error(result, "gsm8k cannot draw prompts", "JSONL file of prompts")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_task(tmp_path):
    """The example of ``rmtools.data.tasks.custom``, as a file."""
    lines = custom.__doc__.split("are a task:\n\n")[1].split("\n\nand ")[0].splitlines()
    (tmp_path / "palindromes.py").write_text("".join(x.removeprefix("    ") + "\n" for x in lines))
    return f"{tmp_path / 'palindromes.py'}:reward"


def test_a_task_of_ones_own(run, tmp_path, policy_folder, value_folder, prompts_file, own_task):
    options = ("--task", own_task, "--prompts", prompts_file, "--horizon", 3)
    result = run("rollout", "--policy", policy_folder, *options, "--trajectories", 4, "--out", tmp_path / "o")
    assert result.code == 0, result.err
    rows, metadata = read_rollouts(tmp_path / "o")
    assert (metadata.task, metadata.horizon) == (own_task, 3)
    for row in rows:
        steps = [s.replace("<eos>", "\n").strip() for s in row.steps]  # as tasks read them
        assert row.reward == np.mean([s == s[::-1] for s in steps])
    result = run("sample", "--model", value_folder, *options, "-n", 4, "--out", tmp_path / "s.jsonl")
    assert result.code == 0, result.err
    result = run("verify", "lm", "--model", value_folder, *options, "--out", tmp_path / "v")
    check_error(result, "cannot list its steps", "step_choices")
    (tmp_path / "palindromes.py").write_text("def reward(*_): return 2")
    check_late(run("sample", "--model", value_folder, *options, "--out", tmp_path / "t.jsonl"), "returned 2")


@pytest.fixture
def answers_file(tmp_path, prompts):
    """Prompts with answers that no solution of the policy gives, and one that all give: nothing to say."""
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": "12"}) + "\n" for p in prompts[:3]))
    return path


def test_answers_reach_every_verb(
    run, tmp_path, policy_folder, checkpoint, answers_file, prompts_file, monkeypatch
):
    """A checkpoint that remembers the task ``answers``; the prompts file brings what is right."""
    options = ("--policy", policy_folder, "--task", "answers", "--prompts", answers_file, "--horizon", 3)
    result = run("rollout", *options, "--trajectories", 2, "--children", 2, "--out", tmp_path / "o")
    assert result.code == 0, result.err
    rows, metadata = read_rollouts(tmp_path / "o")
    assert metadata.task == "answers"
    assert {r.reward for r in rows} == {0.0}

    settings = json.loads((checkpoint / "rmtools.json").read_text())
    (checkpoint / "rmtools.json").write_text(json.dumps({**settings, "task": "answers"}))
    model = ("--model", checkpoint, "--prompts")
    asked = []
    monkeypatch.setattr(
        "rmtools.data.tasks.checker.AnswerChecker.right", lambda self, *texts: asked.append(texts) or True
    )
    result = run("sample", *model, answers_file, "-n", 4, "--out", tmp_path / "s.jsonl")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])
    assert [s["reward"] for s in record["samples"]] == [1.0] * 4
    assert record["provenance"]["task"] == "answers"
    assert {reference for reference, _ in asked} == {"12"}
    branches = ("--trajectories", 4, "--children", 2, "--completions", 1)
    result = run("audit", *model, answers_file, *branches, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert (tmp_path / "a" / "audit.json").exists()
    result = run("verify", "lm", *model, answers_file, "--out", tmp_path / "v")
    check_error(result, "the task answers cannot list its steps")
    # Without answers nothing can be verified, and it is said before any work.
    result = run("sample", *model, prompts_file, "--out", tmp_path / "t.jsonl")
    check_error(result, "no reference answer", '"answer"')


def test_broken_answers(run, tmp_path, policy_folder):
    path = tmp_path / "p.jsonl"
    for text, words in (
        ('{"prompt": "a", "answer": [1]}', ["line 1", "no text or number"]),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": "a", "answer": "2"}', ["two answers"]),
        ('{"prompt": "r2 . \\n"}', ["no reference answer"]),
    ):
        path.write_text(text)
        result = run(
            "rollout",
            "--policy",
            policy_folder,
            "--task",
            "answers",
            "--prompts",
            path,
            "--out",
            tmp_path / "o",
        )
        check_error(result, *words)
    assert not (tmp_path / "o").exists()


def test_own_tasks_that_fail(run, tmp_path, policy_folder, prompts_file):
    path = tmp_path / "mine.py"
    for text, words in (
        ("def reward(", ["mine.py, line 1", "SyntaxError"]),
        ("def other(): ...", ["no function 'reward'", "other"]),
    ):
        path.write_text(text)
        options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 2)
        result = run("rollout", *options, "--task", f"{path}:reward", "--out", tmp_path / "o")
        check_error(result, *words)
    path.write_text("def reward(prompt, steps, reference):\n    raise KeyError(3)")
    result = run("rollout", *options, "--task", f"{path}:reward", "--out", tmp_path / "o")
    check_late(result, "mine.py, line 2", "KeyError: 3")


def test_rollouts_keep_the_answers_they_were_judged_by(run, tmp_path, policy_folder, prompts, own_task):
    """A row holds the right answer; the same prompts with other answers are other rollouts."""
    path = tmp_path / "p.jsonl"

    def rollout(answer):
        path.write_text("".join(json.dumps({"prompt": p, "answer": answer}) + "\n" for p in prompts[:2]))
        options = ("--policy", policy_folder, "--task", own_task, "--prompts", path, "--horizon", 3)
        return run("rollout", *options, "--trajectories", 2, "--out", tmp_path / "o")

    assert rollout("12").code == 0
    assert [r.reference for r in read_rollouts(tmp_path / "o")[0]] == ["12"] * 4
    check_error(rollout("13"), "prompts_sha256")
    assert "finished already" in rollout("12").out


def test_steps_of_free_text_end_where_the_command_says(run, tmp_path, policy_folder, answers_file):
    """Two lines a step: the policy's six are three steps, and the rows remember it."""
    options = ("--policy", policy_folder, "--task", "answers", "--prompts", answers_file, "--horizon", 2)
    result = run("rollout", *options, "--delimiter", r". \n", "--max-step-tokens", 9, "--out", tmp_path / "o")
    assert result.code == 0, result.err
    rows, metadata = read_rollouts(tmp_path / "o")
    assert metadata.steps.delimiter == ". \n"
    # The policy never writes a full stop: each step runs to its limit and holds several lines.
    assert all(len(r.steps) <= 2 for r in rows)
    assert any(s.count("\n") > 1 for r in rows for s in r.steps)
