"""``rmtools evaluate`` with a tiny model: fresh and recorded samples, benchmarks, rollouts; and what is refused."""

import json

import numpy as np
import pytest
from checks import check_error, check_late


@pytest.fixture(scope="module")
def judged(prompts):
    """Rows of ProcessBench and PRMBench on two prompts of the task."""
    steps = ["s r2 ", "s r2 ", "s r2 "]
    common = {"problem": prompts[0].removesuffix("\n"), "steps": steps, "final_answer_correct": True}
    bench = [
        common | {"id": "gsm8k-0", "label": -1},
        common | {"id": "gsm8k-1", "label": 1},
        common | {"id": "math-0", "label": 0},
        common | {"id": "math-1", "label": -1},
    ]
    prm = {
        "original_question": "q",
        "modified_question": prompts[0].removesuffix("\n"),
        "modified_process": steps,
        "error_steps": [2],
    }
    return bench, [prm | {"classification": "circular"}]


def written(path, rows):
    path.write_text(json.dumps(rows))
    return path


def result_of(folder):
    return json.loads((folder / "evaluate.json").read_text())


def test_fresh_samples_and_the_same_recorded(run, value_folder, prompts_file, tmp_path):
    out = tmp_path / "out"
    result = run(
        "evaluate", "best-of-n", "--model", value_folder, "--prompts", prompts_file, "-n", 4, "--out", out
    )
    assert result.code == 0, result.err
    fresh = result_of(out)
    assert (fresh["n"], fresh["n_problems"], fresh["aggregate"]) == (4, 3, "last")
    assert set(fresh["aggregations"]) == {"last", "min", "product", "mean"}
    assert fresh["cost"]["tokens"] > 0
    assert fresh["cost"]["flops"] == 2 * fresh["cost"]["parameters"] * fresh["cost"]["tokens"]
    assert [a["p_from"] for a in fresh["adaptive"]] == ["root value", "hindsight"]
    assert fresh["curve"][-1]["generated_tokens"] > 0
    assert "best of 4" in result.out
    samples = tmp_path / "samples.jsonl"
    sampled = (
        "sample",
        "--model",
        value_folder,
        "--prompts",
        prompts_file,
        "--algorithm",
        "best-of-n",
        "-n",
        4,
    )
    assert run(*sampled, "--out", samples).code == 0
    # The final value that the sampler recorded is the one that the model gives the text.
    again = run("evaluate", "best-of-n", samples, "--out", tmp_path / "a")
    scored = run(
        "evaluate",
        "best-of-n",
        samples,
        "--model",
        value_folder,
        "--aggregate",
        "last",
        "--out",
        tmp_path / "b",
    )
    assert (again.code, scored.code) == (0, 0), again.err + scored.err
    a, b = result_of(tmp_path / "a"), result_of(tmp_path / "b")
    assert a["best_of_n"] == b["best_of_n"]
    assert (a["cost"], b["cost"]["solutions"]) == (None, 12)


def test_benchmarks(run, value_folder, judged, tmp_path):
    bench, prm = judged
    file = written(tmp_path / "bench.json", bench)
    result = run("evaluate", "processbench", file, "--model", value_folder, "--out", tmp_path / "p")
    assert result.code == 0, result.err
    found = result_of(tmp_path / "p")
    assert (found["n"], list(found["subsets"])) == (4, ["gsm8k", "math"])
    assert found["provenance"]["model_fingerprint"]
    assert "constant" in result.out
    result = run(
        "evaluate",
        "prmbench",
        written(tmp_path / "prm.json", prm),
        "--model",
        value_folder,
        "--out",
        tmp_path / "q",
    )
    assert result.code == 0, result.err
    assert list(result_of(tmp_path / "q")["classes"]) == ["circular"]


def test_calibration_is_the_audits(run, value, value_folder, policy, task, prompts, tmp_path):
    from rmtools.data.collect import Branching, Collector
    from rmtools.data.rollouts import RolloutMetadata, write_rollouts
    from rmtools.data.scoring import score_rollouts, within_prompt_and_depth

    rows = Collector(policy, task, Branching(4, 1, 1), np.random.default_rng(0)).collect(prompts[:4])
    write_rollouts(tmp_path / "rollouts", rows, RolloutMetadata.unknown(rows))
    result = run(
        "evaluate", "calibration", tmp_path / "rollouts", "--model", value_folder, "--out", tmp_path / "c"
    )
    assert result.code == 0, result.err
    found = result_of(tmp_path / "c")
    scored = score_rollouts(rows, value)
    p = [np.exp(value.tilt.log_probability(v)) for v in scored.own_log_value]
    squares = [(x - r) ** 2 for v, r in zip(p, scored.reward, strict=True) for x in v]
    assert found["overall"]["brier"]["estimate"] == pytest.approx(np.mean(squares), abs=1e-6)
    within = within_prompt_and_depth(scored).estimate
    assert found["auc_within"]["estimate"] == (None if np.isnan(within) else pytest.approx(within))
    assert list(found["by_depth"]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best-of-n"], "there are no samples"),
        (["best-of-n", "none.json"], "there is no file none.json"),
        (["best-of-n", "--prompts", "p.jsonl"], "none is named"),
        (["processbench", "none.json", "--model", "m"], "there is no file none.json"),
    ],
)
def test_what_is_missing(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_error(run("evaluate", *arguments), message)
    assert not list(tmp_path.iterdir())


def test_bad_rows_and_folders(run, value_folder, judged, tmp_path):
    bench, _ = judged
    file = written(tmp_path / "bench.json", [bench[0] | {"label": 7}])
    check_error(
        run("evaluate", "processbench", file, "--model", value_folder, "--out", tmp_path / "p"),
        "row 0, field label",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    check_error(
        run("evaluate", "prmbench", file, "--model", "m", "--out", tmp_path / "mine"), "holds something else"
    )
    other = written(tmp_path / "other.json", [bench[0] | {"problem": "What is this?"}])
    check_late(
        run("evaluate", "processbench", other, "--model", value_folder, "--out", tmp_path / "p"),
        "does not know",
    )
    assert not (tmp_path / "p").exists()
