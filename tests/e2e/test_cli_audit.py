"""``rmtools audit`` from the command line: what it makes, what it refuses, how it ends."""

import json
import shutil

import pytest
from checks import check_error, check_late

from rmtools.data.load import load_rollouts
from rmtools.verify.language_model import FEWEST_RUNS

BRANCHES = ("--trajectories", 6, "--children", 4, "--completions", 4)


@pytest.fixture
def rollouts(run, tmp_path, policy_folder, prompts_file):
    """Rollouts as another command made them."""
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--max-step-tokens", 6)
    assert run("rollout", *options, *BRANCHES, "--out", tmp_path / "r").code == 0
    return tmp_path / "r"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Draw no plots (four fifths of a small audit; `test_audit_of_a_tiny_model` does), and verify with the fewest runs."""
    monkeypatch.setattr("rmtools.auditing.page.figures", lambda report: ())
    monkeypatch.setattr("rmtools.verify.language_model.MOST_RUNS", FEWEST_RUNS)


def audit_file(folder):
    return json.loads((folder / "audit.json").read_text())


def test_compare_verify_thresholds_and_card(run, tmp_path, checkpoint, rollouts):
    options = ("--model", checkpoint, "--rollouts", rollouts, "--compare", checkpoint, "--verify", "--card")
    result = run("audit", *options, "--fail-above", "brier=1", "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert "compare 1: this model minus that one, paired: squared ratio error 0 [0, 0]" in result.out
    assert "measured with N =" in result.out
    found = audit_file(tmp_path / "a")
    assert found["measured"]["prompts"] == found["provenance"]["n_prompts"]
    assert found["measured"]["runs"] == FEWEST_RUNS
    card = (checkpoint / "README.md").read_text()
    assert "Audit of" in card
    assert card.count("<!-- rmtools audit -->") == 1

    result = run(
        "audit", *options[:4], "--fail-above", "brier=0", "--fail-above", "ece=1", "--out", tmp_path / "a"
    )
    assert result.code == 1
    assert "not met: brier is" in result.out
    assert "not met: ece" not in result.out
    assert (tmp_path / "a" / "audit.html").exists()


def test_a_metric_that_does_not_exist(run, tmp_path, checkpoint):
    result = run("audit", "--model", checkpoint, "--fail-above", "accuracy=1", "--out", tmp_path / "a")
    check_error(result, "no metric 'accuracy'", "rms_log_bellman", "n_for_tv")
    assert not (tmp_path / "a").exists()


def test_prompts_named_by_their_task_and_a_limit(run, tmp_path, checkpoint):
    options = ("--model", checkpoint, "--prompts", "crossing", "--prompts-limit", 4, *BRANCHES)
    result = run("audit", *options, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert audit_file(tmp_path / "a")["provenance"]["n_prompts"] == 4


def test_trajectories_without_branches(run, tmp_path, checkpoint, policy_folder, prompts_file):
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--max-step-tokens", 6)
    assert run("rollout", *options, "--trajectories", 8, "--out", tmp_path / "r").code == 0
    result = run("audit", "--model", checkpoint, "--rollouts", tmp_path / "r", "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert "mean (rho - 1)^2, at least" in result.out
    assert "lower bound" in " ".join(result.out.split())
    lines = result.out.splitlines()[:-1]  # the last is the report's path
    assert max(len(line) for line in lines if "--policy" not in line and "--model" not in line) <= 80
    assert audit_file(tmp_path / "a")["next"]["do"] in ("sample", "calibrate", "train", "more data")
    options = ("--model", checkpoint, "--rollouts", tmp_path / "r", "--verify")
    result = run("audit", *options, "--out", tmp_path / "b")
    assert result.code == 0, result.err
    assert "RMS b, sampled" not in result.out  # what stands there was enumerated, and so were the particles
    assert "measured with N =" in result.out
    model = audit_file(tmp_path / "b")["models"][0]
    assert model["cost"]["sigma2"] is None
    assert model["cost"]["counted_from"] == "tables"


def test_an_implicit_model(run, tmp_path, policy_folder, rollouts):
    options = ("--model", f"implicit:{policy_folder}", "--policy", policy_folder, "--rollouts", rollouts)
    check_error(run("audit", *options), "no folder for its audit", "--out")
    result = run("audit", *options, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    model = audit_file(tmp_path / "a")["models"][0]
    assert model["calibration"]["prefixes"] is None
    # The ratio of a model to itself is 1 everywhere.
    assert model["error"]["sampled"]["plug_in"]["rms"]["estimate"] == pytest.approx(0, abs=1e-5)
    check_error(run("audit", *options, "--card", "--out", tmp_path / "b"), "no model card")


def test_a_checkpoint_that_knows_no_task_scores_rollouts(run, tmp_path, checkpoint, rollouts):
    """Trained on converted data: it can be scored, not drawn from."""
    settings = json.loads((checkpoint / "rmtools.json").read_text())
    (checkpoint / "rmtools.json").write_text(json.dumps({**settings, "task": ""}))
    result = run("audit", "--model", checkpoint, "--rollouts", rollouts, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert audit_file(tmp_path / "a")["models"][0]["error"]["exact"] is None
    check_error(
        run("audit", "--model", checkpoint, "--rollouts", rollouts, "--verify", "--out", tmp_path / "b"),
        "--verify needs the policy and the task",
        "--task",
    )
    assert not (tmp_path / "b" / "audit.json").exists()


def test_a_file_of_rows(run, tmp_path, checkpoint, rollouts):
    file = tmp_path / "rows.jsonl"
    rows = load_rollouts(rollouts)
    fields = ("prompt_id", "prompt", "steps", "reward")
    file.write_text("".join(json.dumps({f: getattr(r, f) for f in fields}) + "\n" for r in rows))
    options = ("--model", checkpoint, "--rollouts", file)
    result = run("audit", *options, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    found = audit_file(tmp_path / "a")
    assert found["provenance"]["n_trajectories"] == len(rows)
    assert any("do not say which policy" in text for text in found["warnings"])
    check_late(
        run("audit", *options, "--verify", "--out", tmp_path / "b"), "--verify would run another policy"
    )


def test_rollouts_of_another_temperature_are_noted(run, tmp_path, checkpoint, rollouts):
    metadata = json.loads((rollouts / "metadata.json").read_text())
    (rollouts / "metadata.json").write_text(
        json.dumps({**metadata, "temperature": 0.7, "policy_fingerprint": "x"})
    )
    result = run("audit", "--model", checkpoint, "--rollouts", rollouts, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    found = audit_file(tmp_path / "a")
    assert any("temperature 0.7" in text for text in found["warnings"])
    first, second = " ".join(result.out.split()).split("WARNING: ")[1:]
    assert "another policy" in first
    assert "temperature 0.7" in second.partition("particles")[0]
    page = (tmp_path / "a" / "audit.md").read_text()
    assert page.index("Warning: another policy") < page.index("How inconsistent")
    assert any("another policy" in text for text in found["warnings"])
    assert found["models"][0]["error"]["exact"] is None


def test_a_missing_shard(run, tmp_path, checkpoint, rollouts):
    shards = sorted(rollouts.rglob("*.parquet"))
    shutil.move(shards[0], tmp_path / "elsewhere")
    result = run("audit", "--model", checkpoint, "--rollouts", rollouts, "--out", tmp_path / "a")
    check_error(result, str(rollouts))
    assert not (tmp_path / "a" / "audit.json").exists()


def test_what_is_refused_before_any_work(run, tmp_path, checkpoint, rollouts):
    options = ("--model", checkpoint, "--rollouts", rollouts, "--out", tmp_path / "a")
    for more, words in (
        (("--delta-tv", 2), "--delta-tv"),
        (("--delta-cv", 0), "--delta-cv"),
        (("--seed", -1), "--seed"),
        (("--seed", 5_000_000_000), "--seed"),
        (("--compare", tmp_path / "none"), "there is no model at"),
        (("--task", "arithmetic"), "rollouts are of the task crossing"),
        (("--verify", "--terminal", "model"), "--verify runs the sampler against the verifier"),
    ):
        check_error(run("audit", *options, *more), words)
        assert not (tmp_path / "a").exists()


def test_weights_whose_values_are_not_finite(run, tmp_path, checkpoint, rollouts):
    from safetensors.torch import load_file, save_file

    path = next(checkpoint.glob("*.safetensors"))
    weights = load_file(path)
    save_file({k: v * 0 + 3e38 if "score" in k else v for k, v in weights.items()}, path)
    result = run("audit", "--model", checkpoint, "--rollouts", rollouts, "--out", tmp_path / "a")
    check_late(result, "gives NaN at a prefix of prompt")
    assert not (tmp_path / "a" / "audit.json").exists()


def test_a_compared_model_with_other_token_ids_is_not_enumerated(run, tmp_path, checkpoint, rollouts):
    """Swapped words: what the policy writes is not what it reads."""
    other = checkpoint.parent / f"other-{tmp_path.name}"  # bases are named relative to the folder
    shutil.copytree(checkpoint, other)
    text = (other / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    words = tokenizer["model"]["vocab"]
    words["r0 "], words["r1 "] = words["r1 "], words["r0 "]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ("--model", checkpoint, "--compare", other, "--rollouts", rollouts)
    result = run("audit", *options, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    models = audit_file(tmp_path / "a")["models"]
    assert models[0]["error"]["exact"] is not None
    assert models[1]["error"]["exact"] is None
    assert models[1]["error"]["sampled"] is not None


def test_an_audit_that_fails_leaves_no_empty_folder(run, tmp_path, checkpoint, rollouts):
    damaged = next((rollouts / "data").glob("*.parquet"))
    damaged.write_bytes(b"PAR1 no more")
    result = run("audit", "--model", checkpoint, "--rollouts", rollouts, "--out", tmp_path / "a")
    assert result.code == 2
    assert damaged.name in result.err
    assert not (tmp_path / "a").exists()
